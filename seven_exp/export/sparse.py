"""Sparse: the kept weights, and one bit per weight for their positions.

The layout is compressed-tensors' sparse-bitmask: for a weight ``w`` of shape (rows, columns) the
file holds ``w.compressed`` (the kept values, row by row), ``w.bitmask`` (uint8, one bit for each
element of a row, the first in the lowest bit), ``w.shape`` and ``w.row_offsets`` (int64: where each
row's values begin). The rows of a kernel are its outputs. Every other tensor is stored unchanged.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.export.formats import ExportError
from seven_exp.export.tensors import read_state, state_of, write_state
from seven_exp.models.loading import load_state
from seven_exp.pruning.masks import pack_bits, unpack_bits
from seven_exp.runs.restore import Restored

EXACT, TAKES_EXPORTS = True, False


def write(source: Restored, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """``model.safetensors``, every pruned weight compressed."""
    if all(bool(mask.all()) for mask in source.masks.values()):
        raise ExportError("nothing is pruned in this run: choose format dense")
    state: dict[str, Tensor] = {}
    for name, tensor in state_of(source.model, dtype).items():
        mask = source.masks.get(name)
        state |= {name: tensor} if mask is None else compress(name, tensor, mask)
    write_state(folder, state)
    return {}


def read(folder: Path, facts: Mapping[str, Any], blank: Callable[[], nn.Module]) -> nn.Module:
    """Load the state dict that `decompress` returns."""
    model = blank()
    load_state(model, decompress(read_state(folder)), f"'{folder}'")
    return model


def compress(name: str, weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A weight's kept values and their positions, as four tensors by name; see the module.

    Args:
        name: Name of the weight.
        weight: At least one dimension, zero where it is pruned.
        mask: Bool, of the same shape; True = kept.
    """
    rows = mask.reshape(len(mask), -1)
    counts = rows.sum(1)
    return {
        f"{name}.compressed": weight[mask],
        f"{name}.bitmask": torch.stack([pack_bits(row) for row in rows]),
        f"{name}.shape": torch.tensor(weight.shape),
        f"{name}.row_offsets": counts.cumsum(0) - counts,
    }


def decompress(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The dense state dict of a compressed one.

    Args:
        state: As in the file; compressed values may have any shape.
    """
    dense = {}
    for name, tensor in state.items():
        weight, _, part = name.rpartition(".")
        if f"{weight}.bitmask" not in state:
            dense[name] = tensor
        elif part == "bitmask":
            shape = state[f"{weight}.shape"].tolist()
            bits = unpack_bits(tensor.flatten(), (len(tensor), tensor.shape[1] * 8))
            mask = bits[:, : math.prod(shape[1:])].reshape(shape)
            values = state[f"{weight}.compressed"]
            dense[weight] = values.new_zeros(shape).masked_scatter_(mask, values)
    return dense
