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

    def restore(self) -> None:
        """Put both back in place."""
        weights, moments = copy.deepcopy(self._states)
        self._model.load_state_dict(weights)
        self._optimizer.load_state_dict(moments)
