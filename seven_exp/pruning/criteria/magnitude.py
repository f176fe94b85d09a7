"""Magnitude: keep the largest weights."""

from collections.abc import Sequence

from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion, magnitudes
from seven_exp.pruning.registry import register


@register("imp", when="after", schedule="exponential", rounds=10)
@register("magnitude", when="after", schedule="one_shot")
@register("magnitude_pre", when="before", schedule="one_shot")
@register("magnitude_dyn", when="during", schedule="cubic")
class Magnitude(Criterion):
    """|w| (Han et al., arXiv 1506.02626); during training, gradually (Zhu, Gupta, 1710.01878)."""

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """|w|."""
        return magnitudes(weights)
