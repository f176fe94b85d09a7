"""Diagonal Fisher: the second-order change of the loss when a weight is removed."""

from torch import Tensor

from seven_exp.pruning.criteria.gradient import GradientNorm
from seven_exp.pruning.criteria.score import State, Tensors
from seven_exp.pruning.registry import register


@register("fisher_pre", when="before", schedule="one_shot")
@register("fisher_dyn", when="during", schedule="cubic")
class Fisher(GradientNorm):
    """w^2 * mean of g^2 (Theis et al., arXiv 1801.05787, eq. 11), the empirical diagonal Fisher.

    Gradients are those of whole batches; use a batch size of 1 for the per-sample mean.
    """

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """w^2 times the sum of g^2; the constant 1/steps does not change the order."""
        return [
            weight.detach().to(squares.dtype).square() * squares
            for weight, squares in zip(weights, state["squares"], strict=True)
        ]
