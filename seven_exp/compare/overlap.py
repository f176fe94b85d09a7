"""How far the masks of several runs agree, read from ``masks.safetensors`` a piece at a time."""

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIECE = 8192
"""Bytes of each mask that are unpacked at a time."""


@dataclass(frozen=True)
class Overlap:
    """Of the masks of n runs, pair by pair.

    Attributes:
        jaccard: float64 (n, n): weights kept by both over weights kept by either; NaN where neither
            keeps any.
        expected: The same of random masks that keep as many weights in each layer: the expected
            number kept by both over that kept by either.
    """

    jaccard: "NDArray[np.float64]"
    expected: "NDArray[np.float64]"


def mask_overlap(paths: Sequence[Path]) -> Overlap:
    """Compare masks of the same layers.

    Time is linear in the weights and quadratic in the runs; memory is that of one layer's packed
    masks, an eighth of a byte a weight and run, and of one piece.

    Args:
        paths: ``masks.safetensors`` files whose `mask_shapes` are equal.

    Raises:
        OSError: A file can't be read.
        ValueError: One is broken, or their layers are not the same.
    """
    from safetensors import SafetensorError, safe_open

    both, expected = np.zeros((2, len(paths), len(paths)))
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="np")) for path in paths]
            for name in files[0].keys():  # noqa: SIM118
                packed = np.stack([file.get_tensor(name) for file in files])
                shape = files[0].metadata()[name]
                shared = _shared(packed)
                both += shared
                kept = shared.diagonal()
                expected += np.outer(kept, kept) / max(1, math.prod(json.loads(shape)))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    kept = both.diagonal()
    total = kept[:, None] + kept[None, :]
    with np.errstate(invalid="ignore"):
        return Overlap(both / (total - both), expected / (total - expected))


def read_shapes(path: Path) -> dict[str, str]:
    """Layer -> shape of a file of masks, as JSON.

    Raises:
        OSError: The file can't be read.
        ValueError: It is truncated, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names, metadata = file.keys(), file.metadata() or {}
            shapes = {name: str(metadata[name]) for name in names}
            for name, shape in shapes.items():
                packed = file.get_slice(name)
                needed = -(-math.prod(json.loads(shape)) // 8)
                if packed.get_dtype() != "U8" or list(packed.get_shape()) != [needed]:
                    raise ValueError(f"{name} is no mask of the shape {shape}")
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    if not shapes:
        raise ValueError("no masks")
    return shapes


def _shared(packed: "NDArray[np.uint8]") -> "NDArray[np.float64]":
    """How many ones each pair of rows has in common; the bits that fill the last byte are zero."""
    found = np.zeros((len(packed), len(packed)))
    for start in range(0, packed.shape[1], _PIECE):
        # Whole numbers below 2^24, which float32 adds up exactly and BLAS multiplies fast.
        bits = np.unpackbits(packed[:, start : start + _PIECE], axis=1).astype(np.float32)
        found += bits @ bits.T
    return found
