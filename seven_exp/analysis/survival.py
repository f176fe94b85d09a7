"""Which weights live on from one moment to another, and which are back from the dead."""

from collections.abc import Sequence

from torch import Tensor


def survivors(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[int]:
    """How many weights of each layer are alive at both moments.

    Args:
        before: Bool masks, one a layer; True = alive.
        after: Masks of the same shapes.
    """
    return [int((a & b).sum()) for a, b in zip(before, after, strict=True)]


def survival(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Fraction of the weights alive before that are alive after; 1 if none was."""
    alive = sum(int(mask.sum()) for mask in before)
    return sum(survivors(before, after)) / alive if alive else 1.0


def births(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Fraction of the weights alive after that were not before; 0 if none is."""
    alive = sum(int(mask.sum()) for mask in after)
    return 1 - sum(survivors(before, after)) / alive if alive else 0.0
