"""Exact selection of the k largest scores over many tensors, streaming, without a sort or a copy.

The threshold is found digit by digit (radix select, 16 bits at a time) on integer keys whose order
is that of the scores; tensors are read as they lie and never concatenated.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_DIGIT = 16
_BINS = 1 << _DIGIT


def top_k_masks(
    scores: Sequence[Tensor], k: int, candidates: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Masks that keep exactly the ``k`` largest scores of all tensors together.

    Equal scores are kept in order: earlier tensors first, then the lower flat index. NaN counts as
    the lowest score, so that a broken value never protects its weight.

    Args:
        scores: Real tensors of any shapes, all of one dtype; devices may differ.
        k: How many to keep in all.
        candidates: Bool tensors of the same shapes; only True places may be kept. None: all.

    Returns:
        Bool tensors shaped and placed like ``scores``, with ``k`` True places in all.

    Raises:
        ValueError: There are fewer than ``k`` candidates, or ``k`` is negative.
    """
    allowed: Sequence[Tensor | None] = candidates or [None] * len(scores)
    available = sum(
        score.numel() if places is None else int(torch.count_nonzero(places))
        for score, places in zip(scores, allowed, strict=True)
    )
    if not 0 <= k <= available:
        raise ValueError(f"can't keep {k} of {available} candidates")
    if k == 0:
        return [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    if k == available:
        return [
            torch.ones_like(score, dtype=torch.bool) if places is None else places.clone()
            for score, places in zip(scores, allowed, strict=True)
        ]

    threshold, ties_to_keep = _kth_largest(scores, allowed, k)
    masks = []
    for score, places in zip(scores, allowed, strict=True):
        keys = _ordered_keys(score, places)
        mask = keys > threshold
        if ties_to_keep:
            ties = (keys == threshold).flatten().nonzero().squeeze(1)[:ties_to_keep]
            mask.view(-1)[ties] = True
            ties_to_keep -= ties.numel()
        masks.append(mask)
    return masks


def kept_count(density: float, n: int) -> int:
    """How many of ``n`` weights a density keeps: ``int(density * n)``.

    The product is nudged by a millionth, so that 1 - 0.9 of 240 is 24 and not 23 (the double
    nearest to 1 - 0.9 lies below 0.1).
    """
    return min(n, int(density * n + 1e-6))


def _ordered_keys(score: Tensor, places: Tensor | None) -> Tensor:
    """Integers, contiguous, in the order of the scores; below them NaN, then barred places."""
    if score.dtype != torch.float64:
        score = score.float()
    integer = torch.int64 if score.dtype == torch.float64 else torch.int32
    lowest = torch.iinfo(integer).min
    # Adding zero turns -0.0 into 0.0, which must tie with it.
    bits = (score.detach().contiguous() + 0.0).view(integer)
    negative = bits >> (torch.iinfo(integer).bits - 1)
    keys = bits.bitwise_xor_(negative & torch.iinfo(integer).max)
    keys.masked_fill_(score.isnan(), lowest + 1)
    if places is not None:
        keys.masked_fill_(~places, lowest)
    return keys


def _kth_largest(
    scores: Sequence[Tensor], allowed: Sequence[Tensor | None], k: int
) -> tuple[int, int]:
    """Key of the k-th largest score, and how many scores with that very key are to be kept."""
    bits = 64 if scores[0].dtype == torch.float64 else 32
    prefix = 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        leading = shift == bits - _DIGIT
        # Only the leading digit is signed.
        offset = _BINS // 2 if leading else 0
        counts = torch.zeros(_BINS, dtype=torch.int64)
        for score, places in zip(scores, allowed, strict=True):
            keys = _ordered_keys(score, places).flatten()
            if not leading:
                keys = keys[(keys >> (shift + _DIGIT)) == prefix]
            digits = (keys >> shift) + offset if leading else (keys >> shift) & (_BINS - 1)
            counts += torch.bincount(digits, minlength=_BINS).cpu()
        at_or_above = counts.flip(0).cumsum(0).flip(0)
        digit = int((at_or_above >= k).nonzero().max())
        k -= int(at_or_above[digit] - counts[digit])
        prefix = digit - offset if leading else (prefix << _DIGIT) | digit
    return prefix, k
