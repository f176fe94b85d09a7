"""Magnitude: keep the largest weights."""

from torch import Tensor

from seven_exp.pruning.criteria.score import Elementwise, State, Tensors, magnitudes
from seven_exp.pruning.registry import register


@register("imp", when="after", schedule="exponential", rounds=10)
@register("magnitude", when="after", schedule="one_shot")
@register("magnitude_pre", when="before", schedule="one_shot")
@register("magnitude_dyn", when="during", schedule="cubic")
class Magnitude(Elementwise):
    """|w| (Han et al., arXiv 1506.02626); during training, gradually (Zhu, Gupta, 1710.01878)."""

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """|w|."""
        return magnitudes(weights)
