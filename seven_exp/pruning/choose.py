"""Choosing masks: scores and a pool in, masks out, under a pattern."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.allocation import Pool, lamp_shares
from seven_exp.pruning.kernels import fused
from seven_exp.pruning.patterns import Pattern
from seven_exp.pruning.select import first_of_rows, kept_count, top_k_masks, top_units


def choose_masks(
    scores: Sequence[Tensor],
    candidates: Sequence[Tensor],
    pool: Pool,
    *,
    available: int,
    pattern: Pattern,
    units: Sequence[Tensor] | None,
    min_density: float,
) -> list[Tensor]:
    """The masks that keep the best weights of a pool, as many as it may keep.

    Args:
        scores: One tensor for each of the pool's layers.
        candidates: Bool tensors of the same shapes: the weights that may be kept.
        pool: How many weights are kept, and whether rows are independent.
        available: Number of candidates.
        pattern: Which sets of weights may be pruned together.
        units: The pattern's units of these layers, if it has any.
        min_density: Fraction that each layer keeps at least.

    Returns:
        Bool tensors like ``candidates``.
    """
    if pool.by_share:
        scores = [lamp_shares(s, c) for s, c in zip(scores, candidates, strict=True)]
    if pool.each_row:
        return [_best_of_rows(s, pool, c, pattern) for s, c in zip(scores, candidates, strict=True)]
    if units is not None:
        return top_units(scores, units, pool.kept, candidates)
    kept = min(pool.kept, available)
    return _best_of_pool(scores, candidates, kept, pattern, min_density)


def _best_of_rows(score: Tensor, pool: Pool, candidates: Tensor, pattern: Pattern) -> Tensor:
    protected = pattern.protected(score, candidates)
    if protected is not None:
        score = score.masked_fill(protected, torch.inf)
    rows, alive = score.flatten(1), candidates.flatten(1)
    best = first_of_rows(rows, pool.kept, alive)
    if pool.more:
        following = first_of_rows(rows, pool.kept + 1, alive) & ~best
        room = min(pool.more, _count([following]))
        best |= top_k_masks([rows], room, [following])[0]
    return best.view_as(candidates)


def _best_of_pool(
    scores: Sequence[Tensor],
    candidates: Sequence[Tensor],
    kept: int,
    pattern: Pattern,
    min_density: float,
) -> list[Tensor]:
    protected = [
        _protected(score, places, pattern, min_density)
        for score, places in zip(scores, candidates, strict=True)
    ]
    if all(mask is None for mask in protected):
        return top_k_masks(scores, kept, candidates)
    certain = [
        torch.zeros_like(places) if mask is None else mask
        for mask, places in zip(protected, candidates, strict=True)
    ]
    others = [places & ~mask for places, mask in zip(candidates, certain, strict=True)]
    room = min(max(0, kept - _count(certain)), _count(others))
    more = top_k_masks(scores, room, others)
    return [mask | other for mask, other in zip(certain, more, strict=True)]


def _protected(
    score: Tensor, candidates: Tensor, pattern: Pattern, min_density: float
) -> Tensor | None:
    """Weights of a layer that stay regardless of other layers: the pattern's and the floor's."""
    mask = pattern.protected(score, candidates)
    floor = kept_count(min_density, candidates.numel())
    if mask is not None or floor == 0:
        return mask  # a pattern's own floor is never lower
    floor = min(floor, _count([candidates]))
    (least,) = top_k_masks([score], floor, [candidates])
    return least


def _count(masks: Sequence[Tensor]) -> int:
    return sum(fused.counts(masks))
