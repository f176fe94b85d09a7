"""Pruner-Zero: the symbolic score that an evolutionary search has found."""

import torch
from torch import Tensor

from seven_exp.pruning.criteria.gradient import GradientNorm
from seven_exp.pruning.criteria.score import State, Tensors
from seven_exp.pruning.registry import register


@register("pruner_zero", when="after", schedule="one_shot", scope="per_row")
class PrunerZero(GradientNorm):
    """|W * W| * minmax(||G||_2), G the gradients of the batches in the dense model.

    minmax maps each layer's smallest norm to 0 and its largest to 1 (Dong et al., "Pruner-Zero",
    arXiv 2406.02924, eq. 4; G as in GBLM).
    """

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """W^2 (G - min G) / (max G - min G)."""
        scores = []
        for norm, weight in zip(super().score(state, weights), weights, strict=True):
            low, high = norm.aminmax()
            reach = (high - low).clamp(min=torch.finfo(norm.dtype).tiny)
            scores.append(weight.detach().square() * ((norm - low) / reach))
        return scores
