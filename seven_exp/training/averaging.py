"""An exponential moving average of the weights, with the masks of the model."""

import copy

import torch
from torch import nn

from seven_exp.pruning import Pruner


class Average:
    """A copy of a model that follows it slowly; it is evaluated and saved in the model's place.

    After step t, average = d * average + (1 - d) * model, with d = min(decay, (1 + t) / (10 + t)),
    so that the start is forgotten soon. Buffers, such as a norm's statistics, are averaged, too;
    pruned weights are exactly zero.

    Args:
        model: The model; the average starts with its weights.
        decay: In (0, 1).

    Attributes:
        model: The average, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    def update(self, model: nn.Module, step: int, pruner: Pruner) -> None:
        """Follow the model after its ``step``-th step."""
        self._blend(model, 1 - min(self.decay, (1 + step) / (10 + step)))
        pruner.apply(self.model)

    def restart(self, model: nn.Module) -> None:
        """Start again from the model's weights."""
        self._blend(model, 1.0)

    def give(self, model: nn.Module) -> None:
        """Put the average into the model."""
        model.load_state_dict(self.model.state_dict())

    @torch.no_grad()
    def _blend(self, model: nn.Module, share: float) -> None:
        pairs = [
            *zip(self.model.parameters(), model.parameters(), strict=True),
            *zip(self.model.buffers(), model.buffers(), strict=True),
        ]
        for own, other in pairs:
            if share < 1 and own.is_floating_point():
                own.lerp_(other, share)
            else:
                own.copy_(other)
