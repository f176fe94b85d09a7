"""2:4: the two kept weights of each group of four, and one bit per weight for their positions.

The layout is compressed-tensors' sparse-24-bitmask: ``w.compressed`` of shape (rows, columns / 2),
``w.bitmask`` and ``w.shape`` as in `seven_exp.export.sparse`. A GPU of compute capability 8.0 or
newer can use it: `accelerate` converts the weights to torch's own layout there, which depends on
the GPU and is not a file format.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.export import sparse
from seven_exp.export.formats import ExportError
from seven_exp.export.tensors import state_of, write_state
from seven_exp.pruning.matrices import matrices, transposed
from seven_exp.pruning.select import first_of_rows
from seven_exp.runs.restore import Restored

EXACT, TAKES_EXPORTS = True, False

read = sparse.read
"""Reads it as dense weights; see `accelerate` for sparse tensor cores."""


def write(source: Restored, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """``model.safetensors``, with two of four weights for every pruned weight.

    Raises:
        ExportError: A weight is not a matrix with a row for each output, or keeps more than two of
            four neighbours.
    """
    turned = [x.name for x in matrices(source.model) if x.name in source.masks and transposed(x)]
    if turned:
        raise ExportError(
            f"format 2:4 is for weights with a row for each output, but {turned[0]} has one for "
            "each input; choose dense or sparse"
        )
    masks = {name: two_of_four(name, mask) for name, mask in source.masks.items()}
    state = {}
    for name, tensor in state_of(source.model, dtype).items():
        if name not in masks:
            state[name] = tensor
            continue
        parts = sparse.compress(name, tensor, masks[name])
        del parts[f"{name}.row_offsets"]
        parts[f"{name}.compressed"] = parts[f"{name}.compressed"].view(len(tensor), -1)
        state |= parts
    write_state(folder, state)
    return {"weights": list(masks)}


def two_of_four(name: str, mask: Tensor) -> Tensor:
    """The mask with exactly two of each four positions: the kept ones, padded from the first.

    Args:
        name: Name of the weight, for the message.
        mask: Bool, (rows, columns); True = kept.

    Raises:
        ExportError: See `write`.
    """
    if mask.dim() != 2:
        raise ExportError(f"format 2:4 is for matrices, but {name} has shape {tuple(mask.shape)}")
    if mask.shape[1] % 4:
        raise ExportError(f"format 2:4: the {mask.shape[1]} inputs of {name} are no multiple of 4")
    fours = mask.view(-1, 4)
    most = int(fours.sum(1).max())
    if most > 2:
        raise ExportError(
            f"format 2:4: {name} keeps {most} of four neighbours; prune the run with "
            "pruner.pattern=2:4 sparsity=0.5"
        )
    return first_of_rows(fours.float(), 2, torch.ones_like(fours)).view(mask.shape)


def accelerate(model: nn.Module, weights: Iterable[str]) -> list[str]:
    """Use sparse tensor cores for the matrix products of 2:4 weights, in place.

    Args:
        model: On a GPU, float16 or bfloat16.
        weights: Names of 2:4 weights. Those of `torch.nn.MultiheadAttention`, whose kernels accept
            only dense ones, stay dense.

    Returns:
        The weights that are now sparse.

    Raises:
        RuntimeError: torch has no sparse kernel for the GPU or for a weight's shape.
    """
    inside = {
        id(part)
        for attention in model.modules()
        if isinstance(attention, nn.MultiheadAttention)
        for part in attention.modules()
    }
    done = []
    for name in weights:
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear) and id(module) not in inside:
            sparse_weight = torch.sparse.to_sparse_semi_structured(module.weight.detach())
            module.weight = nn.Parameter(sparse_weight, requires_grad=False)
            done.append(name)
    return done
