"""Movement: keep the weights that training moves away from zero."""

import torch
from torch import Tensor

from seven_exp.pruning.bounds import above_zero, zero_or_more
from seven_exp.pruning.criteria.score import GradientScore, State, Tensors
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.registry import register
from seven_exp.pruning.regrowth import Remembered
from seven_exp.pruning.rules import Threshold

_RATES = "tag(log,interval(1e-3,1e-1))"


@register("movement", when="during", schedule="cubic", scope="per_layer", space={"lr": _RATES})
def movement(*, lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.999)) -> Ranking:
    """Keeps the highest S. A pruned weight keeps its stored value and may return with it.

    While it is pruned, its value gets no gradient (Sanh et al., "Movement pruning", arXiv
    2005.07683).

    Args:
        lr: Learning rate of the scores.
        betas: Adam's betas for the scores.
    """
    return Ranking(Movement(lr, betas), regrowth=Remembered)


@register(
    "soft_movement",
    when="during",
    schedule="cubic",
    space={"lr": _RATES, "penalty": "tag(log,interval(10.0,1000.0))"},
)
def soft_movement(
    *,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    tau: float = 0.1,
    penalty: float = 400.0,
) -> Ranking:
    """Keeps sigmoid(S) > tau, and adds lambda times the layer mean of sigmoid(S) to the loss.

    (Sanh et al., arXiv 2005.07683, section 4 and eq. 5.) lambda determines the sparsity; the
    requested sparsity is an upper bound. tau and lambda rise from 0 over the window like the cubic
    schedule. All layers share one threshold, so the scope is "global".

    Args:
        lr: Learning rate of the scores.
        betas: Adam's betas for the scores.
        tau: Final threshold, in [0, 1).
        penalty: Final lambda.
    """
    return Ranking(Movement(lr, betas, penalty), Threshold(tau), Remembered)


class Movement(GradientScore):
    """S descends along dL/dS = (dL/dW') * w, straight through the mask in W' = w * mask(S).

    (Sanh et al., arXiv 2005.07683, eqs. 1 and 2.) w is the weight of the forward pass, before the
    optimizer's step. Adam trains the scores like parameters, with their own learning rate and no
    weight decay.

    Args:
        lr: Learning rate of the scores.
        betas: Adam's betas for the scores.
        penalty: Final lambda; lambda rises from 0 like the cubic schedule.
    """

    def __init__(self, lr: float, betas: tuple[float, float], penalty: float = 0.0) -> None:
        above_zero(lr=lr)
        zero_or_more(penalty=penalty)
        self.lr, self.betas = lr, (float(betas[0]), float(betas[1]))
        self.penalty = penalty

    def init(self, weights: Tensors) -> State:
        """S = 0, and Adam's moments."""
        return State.zeros(weights, "score", "mean", "square")

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """One Adam step on the scores."""
        t = state.numbers["t"] = state.numbers.get("t", 0) + 1
        slope = self._slope(state, weights, grads)
        torch._foreach_lerp_(state["mean"], slope, 1 - self.betas[0])
        torch._foreach_mul_(state["square"], self.betas[1])
        torch._foreach_addcmul_(state["square"], slope, slope, 1 - self.betas[1])
        root = torch._foreach_div(state["square"], 1 - self.betas[1] ** t)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, 1e-8)
        rate = -self.lr / (1 - self.betas[0] ** t)
        torch._foreach_addcdiv_(state["score"], state["mean"], root, rate)

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """S."""
        return state["score"]

    def _slope(self, state: State, weights: Tensors, grads: Tensors) -> list[Tensor]:
        """dL/dS plus the penalty's, lambda sigmoid'(S) / (weights of the layer * layers)."""
        slopes = list(torch._foreach_mul(list(grads), [weight.detach() for weight in weights]))
        if not self.penalty:
            return slopes
        rise = 1 - (1 - state.numbers.get("progress", 0.0)) ** 3
        strength = self.penalty * rise / len(weights)
        for slope, score in zip(slopes, state["score"], strict=True):
            chance = score.sigmoid()
            slope.addcmul_(chance, 1 - chance, value=strength / score.numel())
        return slopes
