"""Weights and optimizer states sharded over the ranks (FSDP2), and whole again for files."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.config import ConfigError
from seven_exp.pruning.shards import held, joined, part, whole
from seven_exp.pruning.structure import blocks_of
from seven_exp.training.world import World


def shard(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """Share the rows of all weights among the ranks; the model itself, whose class changes.

    Each block of the model gathers its weights for the time of its passes, and the rest of the
    model for the time of the whole pass. The backward pass averages the gradients over the ranks.

    Args:
        model: With all its weights on every rank, best on the CPU.
        world: The ranks.
        device: Of the shards.

    Raises:
        ConfigError: This version of torch has no FSDP2, or the model holds statistics of batches,
            which ranks would not share.
    """
    if world.size == 1:
        return model.to(device)
    if importlib.util.find_spec("torch.distributed.fsdp._fully_shard") is None:
        raise ConfigError(
            f"trainer.sharding is 'fsdp': torch {torch.__version__} has no fully_shard; install "
            "torch 2.6 or newer, or choose none"
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ConfigError(
            "trainer.sharding is 'fsdp': the model has BatchNorm, whose statistics would differ "
            "between the processes; choose none, or a model without it"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    blocks = [block for block in blocks_of(model) if any(True for _ in block.parameters())]
    for module in (*blocks, model):
        # By default the outermost module keeps its weights after an evaluation.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return model.to(device)


def gathered(value: Any, *, keep: bool) -> Any:
    """Nested containers with whole tensors in place of sharded ones; called on all ranks.

    Args:
        value: Containers of tensors and anything else.
        keep: Whether this rank keeps the tensors, on the CPU; in their place others get empty
            ones. On a device there is one whole tensor at a time.
    """
    return _gathered(value, keep, {})


def _gathered(value: Any, keep: bool, seen: dict[tuple[int, torch.Size], Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {key: _gathered(item, keep, seen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_gathered(item, keep, seen) for item in value)
    if not hasattr(value, "full_tensor"):
        return value
    full = whole(value)
    if not keep:
        return full.new_empty(0)
    place = held(value).data_ptr(), value.shape
    # Tied weights share memory, and so do their copies, which have no room for more.
    if place not in seen:
        seen[place] = full.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return seen[place]


def scattered_model(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A whole state dict with this rank's rows in place of the weights that it shares."""
    own = model.state_dict()
    return {name: _scattered(tensor, own.get(name)) for name, tensor in state.items()}


def scattered_optimizer(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The same for the state dict of an optimizer, whose moments have the shapes of its weights."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {name: _scattered(value, weights[number]) for name, value in own.items()}
        for number, own in state["state"].items()
    }
    return {**state, "state": moments}


def _scattered(value: Any, weight: Tensor | None) -> Any:
    if not isinstance(value, Tensor) or weight is None or value.shape != weight.shape:
        return value
    return joined(part(value, weight), weight)
