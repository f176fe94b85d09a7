"""SNIP: keep the connections whose removal would change the loss most."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion
from seven_exp.pruning.registry import register


@register("snip", when="before", schedule="one_shot")
class Snip(Criterion):
    """|w * sum of g over the batches| (Lee et al., arXiv 1810.02340, eq. 5)."""

    uses_gradients = True

    def update(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Add the batch's gradient to the sum."""
        torch._foreach_add_(self.zeros("gradient", weights), list(grads))

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """|w g|; the constant that the paper divides by does not change the order."""
        return [
            (weight.detach() * gradient).abs()
            for weight, gradient in zip(weights, self.zeros("gradient", weights), strict=True)
        ]
