"""Random: the baseline that every criterion must beat."""

from torch import Tensor

from seven_exp.pruning.criteria.score import Score, State, Tensors
from seven_exp.pruning.registry import register
from seven_exp.pruning.rules import drawn


@register("random", when="before", schedule="one_shot")
class Random(Score):
    """U(0, 1), drawn once, so that gradual pruning is nested.

    Args:
        seed: Seed of the draw.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def init(self, weights: Tensors) -> State:
        """The draw."""
        return State({"score": drawn(weights, self.seed)})

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """The draw."""
        return state["score"]
