"""Layers and units that pruning has emptied."""

from collections.abc import Sequence

from torch import Tensor

COLLAPSED = 0.01
"""Density below which a layer counts as collapsed."""


def collapsed(masks: Sequence[Tensor], threshold: float = COLLAPSED) -> list[int]:
    """Places of the layers that keep less than ``threshold`` of their weights."""
    return [i for i, mask in enumerate(masks) if int(mask.sum()) < threshold * mask.numel()]


def empty_rows(mask: Tensor) -> int:
    """Rows without a weight: units that nothing feeds, in a weight of shape (out, in, ...)."""
    return int((~mask.flatten(1).any(1)).sum())


def empty_columns(mask: Tensor) -> int:
    """Columns without a weight: inputs that feed nothing."""
    return empty_rows(mask.transpose(0, 1))
