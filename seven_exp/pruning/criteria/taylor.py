"""Taylor: the first-order change of the loss when a weight is removed, summed over steps."""

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import Elementwise, GradientScore, State, Tensors
from seven_exp.pruning.registry import register


@register("taylor_pre", when="before", schedule="cubic", rounds=100)
@register("taylor_dyn", when="during", schedule="cubic")
class Taylor(Elementwise, GradientScore):
    """Sum over the steps of |w g| (Molchanov et al., arXiv 1906.10771, eq. 8, without the square).

    SEVEN without its signal-to-noise factor.
    """

    def init(self, weights: Tensors) -> State:
        """The sum so far: 0."""
        return State.zeros(weights, "score")

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """Add the step's |w g|."""
        changes = list(grads)
        torch._foreach_mul_(changes, [weight.detach() for weight in weights])
        torch._foreach_abs_(changes)
        torch._foreach_add_(state["score"], changes)

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """The sum."""
        return state["score"]
