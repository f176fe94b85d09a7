"""PLATON: an upper confidence bound of a weight's importance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion
from seven_exp.pruning.registry import register


@register("platon", when="during", schedule="cubic")
class Platon(Criterion):
    """Ibar * U: smoothed importance times its uncertainty; pruned weights may return.

    At step t, with I the mean of |w g| over the current window of steps (Zhang et al., "PLATON",
    arXiv 2206.12562, eqs. 6 to 8)::

        Ibar = beta_1 Ibar + (1 - beta_1) I
        U    = beta_2 U + (1 - beta_2) |I - Ibar|

    The averages move once a window, as in the authors' code.

    Args:
        beta_1: Decay of the importance, in [0, 1).
        beta_2: Decay of the uncertainty, in [0, 1).
        window: Steps that I is averaged over.
    """

    uses_gradients = True
    revival = "moved"

    def __init__(self, *, beta_1: float = 0.85, beta_2: float = 0.95, window: int = 10) -> None:
        super().__init__()
        for name, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}: choose a number in [0, 1)")
        if window < 1:
            raise ValueError(f"window is {window}: choose 1 or more")
        self.beta_1, self.beta_2, self.window = beta_1, beta_2, window

    def update(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Average |w g|; at each window's end move Ibar and U."""
        names = ("window_mean", "importance", "uncertainty")
        mean, importance, uncertainty = (self.zeros(name, weights) for name in names)
        place = int(self.numbers.get("t", 0)) % self.window
        self.numbers["t"] = self.numbers.get("t", 0) + 1

        sensitivity = list(grads)
        torch._foreach_mul_(sensitivity, [weight.detach() for weight in weights])
        torch._foreach_abs_(sensitivity)
        # With weight 1 at a window's first step, the old window is forgotten.
        torch._foreach_lerp_(mean, sensitivity, 1 / (place + 1))
        if place == self.window - 1:
            torch._foreach_lerp_(importance, mean, 1 - self.beta_1)
            deviation = torch._foreach_sub(mean, importance)
            torch._foreach_abs_(deviation)
            torch._foreach_lerp_(uncertainty, deviation, 1 - self.beta_2)

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Ibar U; before the first window's end, the importance so far."""
        if self.numbers.get("t", 0) < self.window:
            return self.zeros("window_mean", weights)
        return list(
            torch._foreach_mul(
                self.zeros("importance", weights), self.zeros("uncertainty", weights)
            )
        )
