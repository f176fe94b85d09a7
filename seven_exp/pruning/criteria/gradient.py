"""Gradient: keep the weights that the loss is most sensitive to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import GradientScore, State
from seven_exp.pruning.registry import register


@register("gradient", when="during", schedule="linear")
class Gradient(GradientScore):
    """|dL/dw| of the latest batch."""

    def init(self, weights: Sequence[Tensor]) -> State:
        """No gradient yet."""
        return State.zeros(weights, "score")

    def update(self, state: State, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Store |g| of the latest batch."""
        state.tensors["score"] = list(torch._foreach_abs(list(grads)))

    def score(self, state: State, weights: Sequence[Tensor]) -> list[Tensor]:
        """|g|."""
        return state["score"]
