"""SNIP: keep the connections whose removal would change the loss most."""

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import Elementwise, GradientScore, State, Tensors
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.registry import register
from seven_exp.pruning.regrowth import Remembered


@register("snip", when="before", schedule="one_shot")
@register("snip_iterative", when="before", schedule="exponential", rounds=20)
class Snip(Elementwise, GradientScore):
    """|w * sum of g over a round's batches| at the masked model.

    (Lee et al., arXiv 1810.02340, eq. 5; in several rounds, de Jorge et al., 2006.09081.)
    """

    def init(self, weights: Tensors) -> State:
        """The sum so far: 0."""
        return State.zeros(weights, "gradient")

    def begin_round(self, state: State, weights: Tensors) -> State:
        """Reset the sum: earlier rounds had gradients of a denser model."""
        return self.init(weights)

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """Add the batch's gradient to the sum."""
        torch._foreach_add_(state["gradient"], list(grads))

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """|w g|; the constant that the paper divides by does not change the order."""
        return [
            (weight.detach() * gradient).abs()
            for weight, gradient in zip(weights, state["gradient"], strict=True)
        ]


@register("force", when="before", schedule="exponential", rounds=20)
def force() -> Ranking:
    """|w * g|, with w the dense weight and g the gradient at the masked model.

    Pruned weights may return (de Jorge et al., "Progressive skeletonization", arXiv 2006.09081,
    eq. 5 and algorithm 1).
    """
    return Ranking(Snip(), regrowth=Remembered)
