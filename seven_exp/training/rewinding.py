"""Going back to an earlier moment of the training, masks kept."""

import copy
from typing import Any

import torch
from torch import nn


class Snapshot:
    """The weights and the optimizer's state of a moment, to be gone back to any number of times.

    (Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", 1912.05671.)
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._states: tuple[dict[str, Any], dict[str, Any]] = copy.deepcopy(
            (model.state_dict(), optimizer.state_dict())
        )

    @property
    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What it holds: the model's state dict and the optimizer's."""
        return self._states

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        states: tuple[dict[str, Any], dict[str, Any]],
    ) -> "Snapshot":
        """One that holds ``states``, as read from a checkpoint."""
        snapshot = cls(model, optimizer)
        snapshot._states = states
        return snapshot

    def restore(self) -> None:
        """Put both back in place."""
        weights, moments = copy.deepcopy(self._states)
        self._model.load_state_dict(weights)
        self._optimizer.load_state_dict(moments)
