"""Diagonal Fisher: the second-order change of the loss when a weight is removed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import GradientScore, State
from seven_exp.pruning.registry import register


@register("fisher_pre", when="before", schedule="one_shot")
@register("fisher_dyn", when="during", schedule="cubic")
class Fisher(GradientScore):
    """w^2 * mean of g^2 (Theis et al., arXiv 1801.05787, eq. 11), the empirical diagonal Fisher.

    Gradients are those of whole batches; use a batch size of 1 for the per-sample mean.
    """

    def init(self, weights: Sequence[Tensor]) -> State:
        """The sum of g^2 so far: 0."""
        return State.zeros(weights, "squares")

    def update(self, state: State, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Add the step's g^2; the constant 1/steps does not change the order."""
        torch._foreach_addcmul_(state["squares"], list(grads), list(grads))

    def score(self, state: State, weights: Sequence[Tensor]) -> list[Tensor]:
        """w^2 g^2."""
        return [
            weight.detach().to(squares.dtype).square() * squares
            for weight, squares in zip(weights, state["squares"], strict=True)
        ]
