"""AC/DC: training alternates between sparse and dense phases."""

from collections.abc import Sequence

from torch import Tensor

from seven_exp.pruning.criteria.magnitude import Magnitude
from seven_exp.pruning.registry import register


@register("ac_dc", when="during", schedule="alternating")
class AcDc(Magnitude):
    """|w| at the start of each sparse phase; dense phases let all weights return from zero.

    (Peste et al., "AC/DC: alternating compressed/decompressed training", arXiv 2106.12379.) The
    moments of returning weights are cleared; those of the others go on.
    """

    revival = "zero"

    def rank(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], progress: float, density: float
    ) -> list[Tensor]:
        """Within a sparse phase those alive stay, whatever the optimizer moves the others to."""
        scores = self.scores(weights)
        if not any(mask.any() for mask in masks):
            return scores
        return [score.masked_fill(~mask, -1.0) for score, mask in zip(scores, masks, strict=True)]
