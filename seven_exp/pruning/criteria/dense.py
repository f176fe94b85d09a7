"""Dense: no pruning at all, the ceiling to compare with."""

from collections.abc import Sequence

from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion, magnitudes
from seven_exp.pruning.registry import register


@register("dense", when="after", schedule="one_shot", prunes=False)
class Dense(Criterion):
    """Keeps everything, whatever sparsity is asked for."""

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Any order will do: nothing is ever removed."""
        return magnitudes(weights)
