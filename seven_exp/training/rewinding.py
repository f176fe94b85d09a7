"""Rewinding to an earlier moment of the training, with the masks kept."""

import copy
from typing import Any

import torch
from torch import nn

States = tuple[dict[str, Any], dict[str, Any]]


class Snapshot:
    """The weights and the optimizer's state of a moment; can be restored repeatedly.

    (Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", 1912.05671.)

    Args:
        model: The model to snapshot and restore.
        optimizer: The optimizer to snapshot and restore.
        states: Their state dicts at another moment, from a checkpoint.

    Attributes:
        states: The model's state dict and the optimizer's.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, states: States | None = None
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self.states = states or copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def restore(self) -> None:
        """Restore both."""
        weights, moments = copy.deepcopy(self.states)
        self._model.load_state_dict(weights)
        self._optimizer.load_state_dict(moments)
