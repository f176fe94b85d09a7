"""LAMP: magnitude that can be compared between layers."""

import torch
from torch import Tensor

from seven_exp.pruning.allocation import lamp_shares
from seven_exp.pruning.criteria.score import Score, State, Tensors, magnitudes
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.registry import register
from seven_exp.pruning.rules import Moment, Rule


@register("lamp", when="after", schedule="one_shot")
@register("lamp_pre", when="before", schedule="one_shot")
@register("lamp_dyn", when="during", schedule="cubic")
def lamp() -> Ranking:
    """w^2 / (sum of v^2 over the layer's weights v with v^2 >= w^2).

    (Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", 2010.07611, eq. 1.)
    """
    return Ranking(Lamp(), Ties())


class Lamp(Score):
    """The LAMP ratio; the largest weight of every layer scores 1, so no layer is emptied first."""

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """The ratio."""
        return [lamp_shares(magnitude) for magnitude in magnitudes(weights)]


class Ties(Rule):
    """In a layer of equal weights all weights get the lowest ratio, as eq. 1 says for ties.

    If all weights of every layer are equal, only the layer sizes would differ: all ranks are 0.
    """

    def rank(
        self, scores: Tensors, weights: Tensors, masks: Tensors, moment: Moment
    ) -> list[Tensor]:
        """The ratio, the lowest for ties."""
        alike = list(map(constant, magnitudes(weights), masks))
        if all(alike):
            return [torch.zeros_like(share) for share in scores]
        return [
            share.masked_fill(mask, share[mask].min()) if ties and mask.any() else share
            for share, mask, ties in zip(scores, masks, alike, strict=True)
        ]
