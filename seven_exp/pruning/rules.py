"""Rules: scores in, ranks out; the next masks keep the highest ranks."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seven_exp.pruning.bounds import below_one
from seven_exp.pruning.criteria.score import Tensors, magnitudes, precision
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.select import top_k_masks


class Moment(NamedTuple):
    """When masks are chosen, and how many weights they keep.

    Attributes:
        progress: Fraction of the pruner's window that is complete, in (0, 1].
        density: Fraction of the weights that will be kept.
        of_units: Replaces scores by the mean of their unit, if whole units are chosen.
    """

    progress: float
    density: float
    of_units: Callable[[Tensors], list[Tensor]] = list


class Rule:
    """Turns scores into the ranks that the next masks are chosen by. The base keeps the scores."""

    def rank(
        self, scores: Tensors, weights: Tensors, masks: Tensors, moment: Moment
    ) -> list[Tensor]:
        """One tensor of ranks per layer.

        Args:
            scores: One tensor per layer, with its weight's shape. Only read: they may be
                the score's own state.
            weights: The present weights.
            masks: Bool, the present masks.
            moment: The progress and the density.
        """
        return list(scores)

    def floors(self, scores: Tensors, progress: float) -> list[int]:
        """Number of each layer's weights that stay, whatever the schedule says."""
        return [0] * len(scores)


TopK = Rule
"""The highest scores are kept."""


class Threshold(Rule):
    """Keeps sigmoid(score) > tau; tau rises from 0 over the window like the cubic schedule.

    (Sanh et al., "Movement pruning", arXiv 2005.07683, section 4.) The schedule's sparsity is an
    upper bound.

    Args:
        tau: Final threshold, in [0, 1).
    """

    def __init__(self, tau: float) -> None:
        below_one(tau=tau)
        self.tau = tau

    def floors(self, scores: Tensors, progress: float) -> list[int]:
        """The weights above the threshold; none before any evidence."""
        if not any(score.any() for score in scores):
            return super().floors(scores, progress)
        tau = self.tau * (1 - (1 - progress) ** 3)
        return [int((score.sigmoid() > tau).sum()) for score in scores]


class DropAndGrow(Rule):
    """Sparse from the start: each update drops the smallest weights and grows the highest scores.

    It drops the fraction ``drop (1 + cos(pi progress)) / 2`` of each layer's weights, by |w|. Whole
    units are exchanged by their means of |w| and of the scores.

    Args:
        drop: Fraction dropped at the first update, in (0, 1).
        seed: Seed of the random first masks.
    """

    def __init__(self, drop: float, seed: int) -> None:
        if not 0 < drop < 1:
            raise ValueError(f"drop is {drop}: choose a number between 0 and 1")
        self.drop, self.seed = drop, seed

    def first(self, weights: Tensors) -> list[Tensor]:
        """The ranks that choose the first masks."""
        return drawn(weights, self.seed * 1_000_003)

    def rank(
        self, scores: Tensors, weights: Tensors, masks: Tensors, moment: Moment
    ) -> list[Tensor]:
        """Remaining weights first, then the rest by their growth score.

        A layer exchanges no weight if all its weights or all its growth candidates are equal. If
        that holds for every layer, the rule warns.
        """
        scores = moment.of_units(scores)
        if not any(growth.any() for growth in scores):
            return scores
        fraction = self.drop * (1 + math.cos(math.pi * moment.progress)) / 2
        sizes, alive = moment.of_units(magnitudes(weights)), [int(mask.sum()) for mask in masks]
        stay = [_stay(fraction, *layer) for layer in zip(alive, sizes, masks, scores, strict=True)]
        if stay == alive and any(int(fraction * n) for n in alive):
            warnings.warn(
                "no weight is exchanged: in every layer, all weights or the scores of all that "
                "might return are equal",
                stacklevel=7,
            )
        if moment.density * sum(mask.numel() for mask in masks) < sum(stay) - 0.5:
            # With a rising schedule there may be no room for growth, nor for all remaining weights.
            return [size.masked_fill(~mask, -1.0) for size, mask in zip(sizes, masks, strict=True)]
        ranked = []
        for size, mask, growth, count in zip(sizes, masks, scores, stay, strict=True):
            (survivors,) = top_k_masks([size], count, [mask])
            ranked.append((growth / growth.max().clamp(min=1e-38)).masked_fill(survivors, 2.0))
        return ranked


def _stay(fraction: float, alive: int, size: Tensor, mask: Tensor, growth: Tensor) -> int:
    """Number of a layer's weights that are not dropped: all, if weights or candidates are equal."""
    alike = constant(size, mask) or (alive < mask.numel() and constant(growth, ~mask))
    return alive if alike else alive - int(fraction * alive)


def drawn(weights: Tensors, seed: int) -> list[Tensor]:
    """U(0, 1) for each weight, drawn on the CPU so that it is the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(w.shape, generator=generator, dtype=precision(w), device="cpu").to(w.device)
        for w in weights
    ]
