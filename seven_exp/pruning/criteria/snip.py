"""SNIP: keep the connections whose removal would change the loss most."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.criteria.base import Criterion, LossFunction
from seven_exp.pruning.registry import register


@register("snip", when="before", schedule="one_shot")
@register("snip_iterative", when="before", schedule="exponential", rounds=20)
class Snip(Criterion):
    """|w * sum of g over a round's batches| at the masked model.

    (Lee et al., arXiv 1810.02340, eq. 5; in several rounds, de Jorge et al., 2006.09081.)
    """

    uses_gradients = True

    def update(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Add the batch's gradient to the sum."""
        torch._foreach_add_(self.zeros("gradient", weights), list(grads))

    def measure(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        values: Sequence[Tensor],
        batches: Sequence[Any],
        loss_fn: LossFunction,
    ) -> None:
        """Forget the rounds before: their gradients were another model's."""
        self.state.clear()
        super().measure(model, weights, values, batches, loss_fn)

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """|w g|; the constant that the paper divides by does not change the order."""
        return [
            (weight.detach() * gradient).abs()
            for weight, gradient in zip(weights, self.zeros("gradient", weights), strict=True)
        ]


@register("force", when="before", schedule="exponential", rounds=20)
class Force(Snip):
    """|w * g|, w the dense weight and g the gradient at the masked model.

    Pruned weights may return (de Jorge et al., "Progressive skeletonization", arXiv 2006.09081,
    eq. 5 and algorithm 1).
    """

    revival = "remembered"
