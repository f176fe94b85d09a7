"""Replicas of one model on several ranks: averages gradients and scores so that masks agree."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Group = Any
"""A ``torch.distributed.ProcessGroup``; builds of torch without it lack the name."""


def group_of(model: nn.Module) -> Group | None:
    """The ranks that hold replicas of the model: DistributedDataParallel's, inside other wrappers.

    Returns:
        None if the model is not replicated or has one rank only.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            group = model.process_group
            return group if dist.get_world_size(group) > 1 else None
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner


def ranks_of(group: Group | None) -> int:
    """Number of ranks; 1 without a group."""
    return 1 if group is None else dist.get_world_size(group)


def as_of_one(norms: Tensor, group: Group | None) -> Tensor:
    """Norms over batches, beside sums over inputs, which are means over the ranks, not sums."""
    return norms / math.sqrt(ranks_of(group))


@torch.no_grad()
def average(tensors: Sequence[Tensor], group: Group | None) -> None:
    """Replace each tensor by its mean over the ranks, bit for bit the same on all of them.

    Args:
        tensors: Floating point, the same number and shapes on every rank; changed in place.
        group: The ranks; None leaves the tensors unchanged.
    """
    if group is None:
        return
    works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
    for work in works:
        work.wait()
    if tensors:
        torch._foreach_div_(list(tensors), ranks_of(group))
