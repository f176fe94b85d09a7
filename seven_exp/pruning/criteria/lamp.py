"""LAMP: magnitude that can be compared between layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.allocation import lamp_shares
from seven_exp.pruning.criteria.base import Criterion, magnitudes
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.registry import register


@register("lamp", when="after", schedule="one_shot")
@register("lamp_pre", when="before", schedule="one_shot")
@register("lamp_dyn", when="during", schedule="cubic")
class Lamp(Criterion):
    """w^2 / (sum of v^2 over the layer's weights v with v^2 >= w^2).

    (Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", 2010.07611, eq. 1.)
    """

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The ratio; the largest weight of every layer scores 1, so no layer dies first."""
        return [lamp_shares(magnitude) for magnitude in magnitudes(weights)]

    def rank(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], progress: float, density: float
    ) -> list[Tensor]:
        """The ratio; in a layer of equal weights all have the lowest, as eq. 1 says of ties.

        Where every layer is such, nothing but their sizes would tell them apart: all are equal.
        """
        alike = list(map(constant, magnitudes(weights), masks))
        ranked = self.scores(weights)
        if all(alike):
            return [torch.zeros_like(share) for share in ranked]
        for share, mask, ties in zip(ranked, masks, alike, strict=True):
            if ties and mask.any():
                share[mask] = share[mask].min()
        return ranked
