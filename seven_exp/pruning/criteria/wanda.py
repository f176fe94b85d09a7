"""Wanda: weights times the activations they meet."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.criteria.base import Criterion, LossFunction, precision
from seven_exp.pruning.inputs import evaluating, watching
from seven_exp.pruning.registry import register


@register("wanda", when="after", schedule="one_shot", scope="per_row")
class Wanda(Criterion):
    """|W_ij| * ||X_j||_2, compared within each output row (Sun et al., arXiv 2306.11695, eq. 1).

    X_j is all that input j is fed with over the calibration batches, behind layers pruned already
    unless they compete with this one.
    """

    uses_gradients = True
    only_before = True
    one_by_one = True

    def measure(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        values: Sequence[Tensor],
        batches: Sequence[Any],
        loss_fn: LossFunction,
    ) -> None:
        """Sum x_j^2 over the batches."""
        squares = [torch.zeros(w[0].numel(), dtype=precision(w), device=w.device) for w in weights]

        def add(i: int, inputs: Tensor) -> None:
            squares[i] += inputs.to(squares[i].dtype).square().sum(0)

        with watching(weights, add), evaluating(model):
            for batch in batches:
                loss_fn(model, batch)
        self.averaged(squares)
        self.state["norm"] = [
            total.sqrt().view(1, *w.shape[1:]).expand(w.shape)
            for total, w in zip(squares, weights, strict=True)
        ]

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """|W_ij| ||X_j||."""
        return [
            w.detach().abs() * norm for w, norm in zip(weights, self.state["norm"], strict=True)
        ]
