"""How much the masks of several runs agree, read from ``masks.safetensors`` in pieces."""

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seven_exp.messages import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIECE = 8192
"""Bytes of each mask to unpack at a time."""


@dataclass(frozen=True)
class Overlap:
    """The pairwise overlap of the masks of n runs.

    Attributes:
        jaccard: float64 (n, n): weights kept by both over weights kept by either; NaN if neither
            keeps any.
        expected: The same for random masks with the same counts in each layer: the expected number
            of weights kept by both over that of weights kept by either.
    """

    jaccard: "NDArray[np.float64]"
    expected: "NDArray[np.float64]"


def mask_overlap(paths: Sequence[Path]) -> Overlap:
    """Compare masks of the same layers.

    Time is linear in the weights and quadratic in the runs. Memory is that of one layer's packed
    masks, one bit per weight and run, and of one unpacked piece.

    Args:
        paths: ``masks.safetensors`` files with equal `mask_shapes`.

    Raises:
        OSError: A file can't be read.
        ValueError: A file is broken, or the files have different layers.
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
        raise ValueError(one_line(error)) from error
    kept = both.diagonal()
    total = kept[:, None] + kept[None, :]
    with np.errstate(invalid="ignore"):
        return Overlap(both / (total - both), expected / (total - expected))


def read_shapes(path: Path) -> dict[str, str]:
    """Layer -> shape in a file of masks, as JSON.

    Raises:
        OSError: The file can't be read.
        ValueError: It is truncated, or not a file of masks.
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
                    raise ValueError(f"{name} is not a mask of the shape {shape}")
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(one_line(error)) from error
    if not shapes:
        raise ValueError("no masks")
    return shapes


def _shared(packed: "NDArray[np.uint8]") -> "NDArray[np.float64]":
    """Number of ones that each pair of rows has in common; padding bits are zero."""
    found = np.zeros((len(packed), len(packed)))
    for start in range(0, packed.shape[1], _PIECE):
        # Integers below 2^24 are exact in float32, which BLAS multiplies fast.
        bits = np.unpackbits(packed[:, start : start + _PIECE], axis=1).astype(np.float32)
        found += bits @ bits.T
    return found
