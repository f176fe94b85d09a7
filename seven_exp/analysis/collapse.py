"""Layers and units that pruning has emptied."""

from collections.abc import Sequence

from torch import Tensor

COLLAPSED = 0.01
"""Density below which a layer counts as collapsed."""


def collapsed(masks: Sequence[Tensor], threshold: float = COLLAPSED) -> list[int]:
    """Indices of the layers that keep less than ``threshold`` of their weights."""
    return [i for i, mask in enumerate(masks) if int(mask.sum()) < threshold * mask.numel()]


def empty_rows(mask: Tensor) -> int:
    """Number of rows without a weight (units without inputs) of an (out, in, ...) weight."""
    return int((~mask.flatten(1).any(1)).sum())


def empty_columns(mask: Tensor) -> int:
    """Number of columns without a weight: inputs that are not used."""
    return empty_rows(mask.transpose(0, 1))
