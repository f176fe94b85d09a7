"""Rules: scores in, ranks out; the next masks keep the highest ranks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import magnitudes, precision
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.select import top_k_masks


class Moment(NamedTuple):
    """When masks are chosen, and for how many weights.

    Attributes:
        progress: How far through its window the pruner is, in (0, 1].
        density: Fraction of the weights that will be kept.
    """

    progress: float
    density: float


class Rule:
    """What the next masks are chosen by. This one: the scores themselves (`TopK`)."""

    def rank(
        self,
        scores: Sequence[Tensor],
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        moment: Moment,
    ) -> list[Tensor]:
        """One tensor of ranks a layer.

        Args:
            scores: One tensor a layer, shaped like its weight. Only read: they may be the score's
                own state.
            weights: As they are now.
            masks: Bool, which of them are alive.
            moment: When, and how many are to be kept.
        """
        return list(scores)

    def ceiling(self, scores: Sequence[Tensor], progress: float) -> float:
        """Sparsity beyond which the rule prunes nothing, whatever the schedule asks for."""
        return 1.0


TopK = Rule
"""The highest scores are kept."""


class Threshold(Rule):
    """Keeps sigmoid(score) > tau, tau rising from 0 along the window as the cubic schedule does.

    (Sanh et al., "Movement pruning", arXiv 2005.07683, section 4.) The sparsity that the schedule
    asks for is the most that is pruned.

    Args:
        tau: Final threshold, in [0, 1).
    """

    def __init__(self, tau: float) -> None:
        if not 0 <= tau < 1:
            raise ValueError(f"tau is {tau}: choose a number in [0, 1)")
        self.tau = tau

    def ceiling(self, scores: Sequence[Tensor], progress: float) -> float:
        """The fraction at or below the threshold; without evidence, no bound."""
        if not any(score.any() for score in scores):
            return 1.0
        tau = self.tau * (1 - (1 - progress) ** 3)
        below = sum(int((score.sigmoid() <= tau).sum()) for score in scores)
        return below / sum(score.numel() for score in scores)


class DropAndGrow(Rule):
    """Sparse from the start: each update drops small weights and grows those of highest score.

    A falling fraction ``drop (1 + cos(pi progress)) / 2`` of each layer's smallest |w| makes room.

    Args:
        drop: Fraction dropped at the first update, in (0, 1).
        seed: Of the random first masks.
    """

    def __init__(self, drop: float, seed: int) -> None:
        if not 0 < drop < 1:
            raise ValueError(f"drop is {drop}: choose a number between 0 and 1")
        self.drop, self.seed = drop, seed

    def first(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The ranks by which the first masks are chosen."""
        return drawn(weights, self.seed)

    def rank(
        self,
        scores: Sequence[Tensor],
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        moment: Moment,
    ) -> list[Tensor]:
        """Survivors first, then the rest in the order of growth.

        A layer in which all weights or all candidates for growth are alike exchanges none.
        """
        if not any(growth.any() for growth in scores):
            return list(scores)
        fraction = self.drop * (1 + math.cos(math.pi * moment.progress)) / 2
        sizes = magnitudes(weights)
        stay = [_stay(fraction, *layer) for layer in zip(sizes, masks, scores, strict=True)]
        if moment.density * sum(mask.numel() for mask in masks) < sum(stay) - 0.5:
            # A rising schedule leaves no room for growth, nor for all that would stay.
            return [size.masked_fill(~mask, -1.0) for size, mask in zip(sizes, masks, strict=True)]
        ranked = []
        for size, mask, growth, count in zip(sizes, masks, scores, stay, strict=True):
            (survivors,) = top_k_masks([size], count, [mask])
            ranked.append((growth / growth.max().clamp(min=1e-38)).masked_fill(survivors, 2.0))
        return ranked


def _stay(fraction: float, size: Tensor, mask: Tensor, growth: Tensor) -> int:
    """How many of a layer's weights are not dropped: all, where nothing tells which or for what."""
    alive = int(mask.sum())
    alike = constant(size, mask) or (alive < mask.numel() and constant(growth, ~mask))
    return alive if alike else alive - int(fraction * alive)


def drawn(weights: Sequence[Tensor], seed: int) -> list[Tensor]:
    """U(0, 1) for each weight, drawn on the CPU so that every device has the same."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(w.shape, generator=generator, dtype=precision(w), device="cpu").to(w.device)
        for w in weights
    ]
