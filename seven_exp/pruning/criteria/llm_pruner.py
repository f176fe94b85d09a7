"""LLM-Pruner: the change of the loss when a weight is removed, for units of coupled weights."""

from torch import Tensor

from seven_exp.pruning.criteria.score import GradientScore, State, Tensors, precision
from seven_exp.pruning.registry import register


@register("llm_pruner", when="after", schedule="one_shot", scope="per_layer")
class LlmPruner(GradientScore):
    """|w g - w^2 h / 2|, with g and h the means of the batches' gradients and of their squares.

    With pattern coupled, the sum over a unit decides, among the units of a layer (Ma et al.,
    "LLM-Pruner: on the structural pruning of large language models", arXiv 2305.11627, eq. 5:
    "Element" with sums). At first order, this is SNIP's score.

    Args:
        second_order: Whether h counts; otherwise it is 0.
    """

    def __init__(self, *, second_order: bool = False) -> None:
        self.second_order = second_order

    def init(self, weights: Tensors) -> State:
        """The sums so far: 0."""
        names = ("gradient", "squares") if self.second_order else ("gradient",)
        state = State.zeros(weights, *names)
        state.numbers["batches"] = 0
        return state

    def begin_round(self, state: State, weights: Tensors) -> State:
        """Reset the sums: earlier rounds had gradients of a denser model."""
        return self.init(weights)

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """Add the batch's gradient, and its square."""
        state.numbers["batches"] += 1
        for i, gradient in enumerate(grads):
            state["gradient"][i] += gradient
            if self.second_order:
                state["squares"][i].addcmul_(gradient, gradient)

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """|w g - w^2 h / 2|."""
        batches = max(1, state.numbers["batches"])
        scores = []
        for i, weight in enumerate(weights):
            w = weight.detach().to(precision(weight))
            change = w * state["gradient"][i]
            if self.second_order:
                change = change - w.square() * state["squares"][i] / 2
            scores.append(change.abs() / batches)
        return scores
