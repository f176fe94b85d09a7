"""Which weights stay kept between two moments, and which return."""

from collections.abc import Sequence

from torch import Tensor


def survivors(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[int]:
    """Number of weights of each layer that are kept at both moments.

    Args:
        before: Bool masks, one per layer; True = kept.
        after: Masks of the same shapes.
    """
    return [int((a & b).sum()) for a, b in zip(before, after, strict=True)]


def survival(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Fraction of the weights kept before that are kept after; 1 if there were none."""
    alive = sum(int(mask.sum()) for mask in before)
    return sum(survivors(before, after)) / alive if alive else 1.0


def births(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Fraction of the weights kept after that were not kept before; 0 if there are none."""
    alive = sum(int(mask.sum()) for mask in after)
    return 1 - sum(survivors(before, after)) / alive if alive else 0.0
