"""Sparse from start to end: SET and RigL drop the smallest weights and grow others."""

from torch import Tensor

from seven_exp.pruning.criteria.gradient import Gradient
from seven_exp.pruning.criteria.score import Score, State, Tensors
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.registry import register
from seven_exp.pruning.regrowth import FromZero
from seven_exp.pruning.rules import DropAndGrow, drawn

_SPACE = {"drop": "interval(0.05,0.5)"}


@register("rigl", when="during", schedule="constant", scope="erk", space=_SPACE)
def rigl(*, drop: float = 0.3, seed: int = 0) -> Ranking:
    """Grows where the dense gradient is largest (Evci et al., arXiv 1911.11134).

    Args:
        drop: Fraction dropped at the first update, in (0, 1).
        seed: Seed of the random first masks.
    """
    return Ranking(Gradient(), DropAndGrow(drop, seed), FromZero)


@register("set", when="during", schedule="constant", scope="erk", space=_SPACE)
def set_(*, drop: float = 0.3, seed: int = 0) -> Ranking:
    """Grows at random (Mocanu et al., arXiv 1707.04780).

    Args:
        drop: Fraction dropped at the first update, in (0, 1).
        seed: Seed of the random first masks and of growth.
    """
    return Ranking(Redrawn(seed), DropAndGrow(drop, seed), FromZero)


class Redrawn(Score):
    """U(0, 1), drawn again for each mask update.

    Args:
        seed: Seed of the draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """The draw."""
        return drawn(weights, self.seed * 1_000_003 + int(state.numbers.get("updates", 0)))
