"""How much memory a pruner will hold, computed before anything is allocated."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seven_exp.pruning.create import create_pruner
from seven_exp.pruning.keywords import read_by
from seven_exp.pruning.layers import prunable_layers
from seven_exp.pruning.pruner import Pruner


class MemoryPlan(NamedTuple):
    """Bytes that pruning adds to training.

    Attributes:
        prunable: Number of prunable weights.
        total: Number of parameters.
        per_weight: Bytes per prunable weight, masks included.
        per_rank: Bytes on each rank if the ranks shard the weights evenly.
    """

    prunable: int
    total: int
    per_weight: float
    per_rank: int


def plan_memory(name: str, model: nn.Module, *, ranks: int = 1, **settings: Any) -> MemoryPlan:
    """Compute how much memory a pruner that acts during training will hold for a model.

    Args:
        name: A registered name, such as "seven_dyn".
        model: May be on the meta device, where even 7B parameters take no memory.
        ranks: Number of processes among which weights and state are sharded.
        **settings: ``include``, ``exclude``, ``exclude_defaults`` and the method's
            hyper-parameters, as for `create_pruner`.

    Raises:
        ValueError: As in `create_pruner`; or the pruner does not gather its state in training
            steps.
    """
    which = ("include", "exclude", "exclude_defaults")
    chosen = {key: settings.pop(key) for key in which if key in settings}
    layers = prunable_layers(model, **chosen)
    total = sum(parameter.numel() for parameter in model.parameters())
    held: dict[torch.dtype, float] = {}
    for layer in layers:
        dtype = layer.weight.dtype
        if dtype not in held:
            held[dtype] = _bytes_per_weight(name, dtype, settings)
    prunable = sum(layer.weight.numel() for layer in layers)
    needed = sum(layer.weight.numel() * held[layer.weight.dtype] for layer in layers)
    return MemoryPlan(prunable, total, needed / prunable, -int(-needed // ranks))


def _bytes_per_weight(name: str, dtype: torch.dtype, settings: dict[str, Any]) -> float:
    """Measured by pruning a tiny layer: the state grows in proportion to the weights."""
    layer = nn.Linear(64, 64, dtype=dtype)
    if "optimizer" in read_by(name, "during"):
        settings = settings | {"optimizer": torch.optim.SGD(layer.parameters(), lr=0.1)}
    pruner = create_pruner(name, layer, sparsity=0.5, end_step=2, when="during", **settings)
    layer.weight.grad = torch.full_like(layer.weight, 1e-3)
    pruner.step()
    return held_bytes(pruner) / layer.weight.numel()


def held_bytes(pruner: Pruner) -> int:
    """Bytes of the tensors that a pruner holds now: masks, score state and remembered weights."""
    tensors: list[Tensor] = [*pruner._masks.bits, *(pruner._regrowth.memory or ())]
    for column in pruner.state.tensors.values():
        tensors += column
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
