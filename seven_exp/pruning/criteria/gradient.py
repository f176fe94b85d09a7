"""Gradient: keep the weights that the loss is most sensitive to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion
from seven_exp.pruning.registry import register


@register("gradient", when="during", schedule="linear")
class Gradient(Criterion):
    """|dL/dw| of the latest batch."""

    uses_gradients = True

    def update(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Remember the latest gradient's size."""
        self.state["score"] = list(torch._foreach_abs(list(grads)))

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """|g|."""
        return self.zeros("score", weights)
