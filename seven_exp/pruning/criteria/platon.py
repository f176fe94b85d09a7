"""PLATON: an upper confidence bound of a weight's importance."""

import torch
from torch import Tensor

from seven_exp.pruning.bounds import below_one, one_or_more
from seven_exp.pruning.criteria.score import Elementwise, GradientScore, State, Tensors
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.registry import register
from seven_exp.pruning.regrowth import Moved

_SPACE = {
    "beta_1": "interval(0.5,0.99)",
    "beta_2": "interval(0.5,0.99)",
    "window": "int(tag(log,interval(1,50)))",
}


@register("platon", when="during", schedule="cubic", space=_SPACE)
def platon(*, beta_1: float = 0.85, beta_2: float = 0.95, window: int = 10) -> Ranking:
    """Keeps the highest Ibar * U, see `Platon`; weights return with the optimizer's latest update.

    Args:
        beta_1: Decay of the importance, in [0, 1).
        beta_2: Decay of the uncertainty, in [0, 1).
        window: Length of the averaging window: the number of steps that I is averaged over.
    """
    return Ranking(Platon(beta_1, beta_2, window), regrowth=Moved)


class Platon(Elementwise, GradientScore):
    """Ibar * U: smoothed importance times its uncertainty.

    At step t, with I the mean of |w g| over the present averaging window (Zhang et al., "PLATON",
    arXiv 2206.12562, eqs. 6 to 8)::

        Ibar = beta_1 Ibar + (1 - beta_1) I
        U    = beta_2 U + (1 - beta_2) |I - Ibar|

    Ibar and U are updated at the end of each averaging window, as in the authors' code.

    Args:
        beta_1: Decay of the importance, in [0, 1).
        beta_2: Decay of the uncertainty, in [0, 1).
        window: Length of the averaging window: the number of steps that I is averaged over.
    """

    def __init__(self, beta_1: float, beta_2: float, window: int) -> None:
        below_one(beta_1=beta_1, beta_2=beta_2)
        one_or_more(window=window)
        self.beta_1, self.beta_2, self.window = beta_1, beta_2, window

    def init(self, weights: Tensors) -> State:
        """All averages at 0."""
        return State.zeros(weights, "window_mean", "importance", "uncertainty")

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """Average |w g|; at the end of an averaging window update Ibar and U."""
        names = ("window_mean", "importance", "uncertainty")
        mean, importance, uncertainty = (state[name] for name in names)
        place = int(state.numbers.get("t", 0)) % self.window
        state.numbers["t"] = state.numbers.get("t", 0) + 1

        sensitivity = list(grads)
        torch._foreach_mul_(sensitivity, [weight.detach() for weight in weights])
        torch._foreach_abs_(sensitivity)
        # The first step of an averaging window has weight 1, which discards the previous window.
        torch._foreach_lerp_(mean, sensitivity, 1 / (place + 1))
        if place == self.window - 1:
            torch._foreach_lerp_(importance, mean, 1 - self.beta_1)
            deviation = torch._foreach_sub(mean, importance)
            torch._foreach_abs_(deviation)
            torch._foreach_lerp_(uncertainty, deviation, 1 - self.beta_2)

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """Ibar U; before the first averaging window ends, the mean of |w g| so far."""
        if state.numbers.get("t", 0) < self.window:
            return state["window_mean"]
        return list(torch._foreach_mul(state["importance"], state["uncertainty"]))
