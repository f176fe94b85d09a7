"""Shards of one model's weights: each rank holds some rows of every weight, as with FSDP2."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seven_exp.pruning.replicas import Group, ranks_of


def shards_of(model: nn.Module) -> Group | None:
    """The ranks that share the weights of a model; None if this process holds all of them.

    Raises:
        ValueError: The weights are not all distributed by their rows, over the same ranks.
    """
    named: dict[str, Any] = dict(model.named_parameters())
    meshes = {p.device_mesh for p in named.values() if _is_distributed(p)}
    if not meshes:
        return None
    for name, parameter in named.items():
        placements: tuple[Any, ...] = getattr(parameter, "placements", ())
        if len(meshes) > 1 or len(placements) != 1 or not placements[0].is_shard(0):
            how = f"is distributed as {placements}" if placements else "is not distributed"
            raise ValueError(
                f"{name} {how}: shard the rows of all weights over one group of ranks, as "
                "fully_shard(model) does"
            )
    group = next(iter(meshes)).get_group()
    return group if ranks_of(group) > 1 else None


def held(tensor: Any) -> Tensor:
    """The rows that this rank holds, sharing their memory; the tensor itself if it is whole."""
    if _is_distributed(tensor):
        with torch.no_grad():
            tensor = tensor.to_local()
    rows: Tensor = tensor
    return rows


def part(whole: Tensor, weight: Any) -> Tensor:
    """The rows of a tensor that this rank holds of a weight, on its device.

    Args:
        whole: With the weight's shape, on every rank; or sharded like the weight.
        weight: Sharded or whole.
    """
    if _is_distributed(weight) and not _is_distributed(whole):
        rows = -(-len(whole) // weight.device_mesh.size())
        start = rows * weight.device_mesh.get_local_rank()
        whole = whole[start : start + rows]
    return held(whole).to(held(weight).device)


def joined(rows: Tensor, weight: Any) -> Tensor:
    """Every rank's rows as one tensor that is sharded like a weight; the rows of a whole one.

    Args:
        rows: What this rank holds.
        weight: Sharded or whole.
    """
    if not _is_distributed(weight):
        return rows
    from torch.distributed.tensor import DTensor

    mesh, places = weight.device_mesh, weight.placements
    return DTensor.from_local(
        rows, mesh, places, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def whole(tensor: Any) -> Tensor:
    """All rows, on every rank; called on all of them."""
    full: Tensor = tensor.full_tensor() if _is_distributed(tensor) else tensor
    return full


def summed(numbers: Tensor, group: Group | None, device: torch.device) -> Tensor:
    """The sum over the ranks of a group, on the CPU; the numbers themselves without one.

    Args:
        numbers: Of any shape, on the CPU.
        group: The ranks.
        device: Where the group's tensors are.
    """
    if group is None:
        return numbers
    numbers = numbers.to(device, copy=True)
    dist.all_reduce(numbers, group=group)
    return numbers.cpu()


def highest(numbers: Tensor, group: Group | None, device: torch.device) -> Tensor:
    """The largest over the ranks of a group of each number; see `summed`."""
    if group is None:
        return numbers
    numbers = numbers.to(device, copy=True)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=group)
    return numbers.cpu()


def gradients(
    loss: Tensor, model: nn.Module, weights: Sequence[nn.Parameter]
) -> list[Tensor | None]:
    """This rank's rows of the gradients of the ranks' mean loss; ``.grad`` does not change.

    FSDP2 reduces gradients when a backward pass accumulates them, not for ``autograd.grad``.
    """
    parameters = list(model.parameters())
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        loss.backward()  # type: ignore[no-untyped-call]
        return [None if weight.grad is None else held(weight.grad) for weight in weights]
    finally:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad


def _is_distributed(tensor: Any) -> bool:
    # Importing DTensor takes longer than importing torch, so whoever has one has imported it.
    return hasattr(tensor, "placements")
