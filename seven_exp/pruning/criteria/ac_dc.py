"""AC/DC: training alternates between sparse and dense phases."""

from torch import Tensor

from seven_exp.pruning.criteria.magnitude import Magnitude
from seven_exp.pruning.criteria.score import Tensors
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.registry import register
from seven_exp.pruning.regrowth import FromZero
from seven_exp.pruning.rules import Moment, Rule


@register("ac_dc", when="during", schedule="alternating")
def ac_dc() -> Ranking:
    """Keeps the highest |w| at the start of each sparse phase; in dense phases all weights return.

    (Peste et al., "AC/DC: alternating compressed/decompressed training", arXiv 2106.12379.)
    Weights return from zero, and their optimizer moments are cleared.
    """
    return Ranking(Magnitude(), Phases(), FromZero)


class Phases(Rule):
    """Within a sparse phase, kept weights stay and pruned ones do not return."""

    def rank(
        self, scores: Tensors, weights: Tensors, masks: Tensors, moment: Moment
    ) -> list[Tensor]:
        """The scores of kept weights; pruned ones rank below all of them."""
        if not any(mask.any() for mask in masks):
            return list(scores)
        return [score.masked_fill(~mask, -1.0) for score, mask in zip(scores, masks, strict=True)]
