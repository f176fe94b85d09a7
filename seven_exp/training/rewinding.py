"""Going back to an earlier moment of the training, masks kept."""

import copy
from typing import Any

import torch
from torch import nn

States = tuple[dict[str, Any], dict[str, Any]]


class Snapshot:
    """The weights and the optimizer's state of a moment, to be gone back to any number of times.

    (Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", 1912.05671.)

    Args:
        model: As it is now.
        optimizer: Likewise.
        states: Their state dicts at another moment, as read from a checkpoint.

    Attributes:
        states: The model's state dict and the optimizer's.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, states: States | None = None
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self.states = states or copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def restore(self) -> None:
        """Put both back in place."""
        weights, moments = copy.deepcopy(self.states)
        self._model.load_state_dict(weights)
        self._optimizer.load_state_dict(moments)
