"""Gradient: keep the weights that the loss is most sensitive to; also norms over batches."""

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import Elementwise, GradientScore, State, Tensors
from seven_exp.pruning.registry import register


@register("gradient", when="during", schedule="linear")
class Gradient(Elementwise, GradientScore):
    """|dL/dw| of the latest batch."""

    def init(self, weights: Tensors) -> State:
        """No gradient yet."""
        return State.zeros(weights, "score")

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """Store |g| of the latest batch."""
        state.tensors["score"] = list(torch._foreach_abs(list(grads)))

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """|g|."""
        return state["score"]


class GradientNorm(Elementwise, GradientScore):
    """||g||_2 over the batches."""

    def init(self, weights: Tensors) -> State:
        """The sum of g^2 so far: 0."""
        return State.zeros(weights, "squares")

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """Add the batch's g^2."""
        torch._foreach_addcmul_(state["squares"], list(grads), list(grads))

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """The norm."""
        return list(torch._foreach_sqrt(state["squares"]))
