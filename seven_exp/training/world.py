"""The processes that train one model together, or the single process that trains it.

It uses accelerate rather than its own calls: accelerate finds the backend and the device for each
kind of accelerator, and users of transformers have it.
"""

import atexit
import contextlib
import gc
import importlib.util
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from seven_exp.config import ConfigError
from seven_exp.datasets.batches import epoch_seed


@dataclass(frozen=True)
class World:
    """Ranks 0 to ``size`` - 1; all ranks must call every method that communicates.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
        accelerator: Accelerate's object; None for one process.
    """

    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """Whether this rank writes files and messages."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """Seed of this rank's generators: each rank draws its own dropout."""
        return seed if self.main else epoch_seed(seed, self.rank)

    def replicas(self, model: nn.Module) -> nn.Module:
        """The model, whose backward pass averages gradients over the ranks."""
        if self.size == 1:
            return model
        return cast(nn.Module, self.accelerator.prepare_model(model, device_placement=False))

    def apart(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Disable gradient averaging in the backward pass of `replicas` within the context."""
        if not isinstance(model, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return cast(AbstractContextManager[Any], self.accelerator.no_sync(model))

    def total(self, numbers: Tensor) -> Tensor:
        """All-reduce to the sum over the ranks, the same bits on all."""
        return numbers if self.size == 1 else self.accelerator.reduce(numbers, "sum")

    def any(self, condition: bool) -> bool:
        """Whether the condition holds on any rank."""
        return condition if self.size == 1 else any(self.gather(condition))

    def gather(self, value: Any) -> list[Any]:
        """All-gather: every rank's value, by rank; on the CPU."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def told(self, value: Any) -> Any:
        """Broadcast the main rank's value; the other ranks' values are ignored."""
        return self.gather(value if self.main else None)[0]

    def in_turn(self) -> AbstractContextManager[Any]:
        """Run the context on the main rank first, so that it can fill a cache for the others."""
        if self.size == 1:
            return contextlib.nullcontext()
        return cast(AbstractContextManager[Any], self.accelerator.main_process_first())


def join(device: str) -> tuple[World, torch.device]:
    """Join the other processes, if there are any; return the world and this process's device.

    Args:
        device: auto, cpu, mps, cuda or cuda:N.

    Raises:
        ConfigError: There is no such device, or several processes can't share it.
    """
    # Environment variables of torchrun and accelerate launch.
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World(), device_of(device)
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigError(
            f"{size} processes were started: they need accelerate: uv sync --extra distributed"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is '{device}': {size} processes need one each: choose auto")
    kind = device_of(device).type
    # Imported after the group exists, its functions' defaults would hold that group permanently.
    importlib.import_module("torch.distributed.nn")
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=kind == "cpu")
    atexit.unregister(_leave)
    atexit.register(_leave)
    world = World(accelerator.process_index, accelerator.num_processes, accelerator)
    return world, accelerator.device


def name_of(device: torch.device) -> str:
    """A GPU's product name, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _leave() -> None:
    """Release the group before the interpreter shuts down.

    If a gloo thread releases a tensor later, it aborts the process
    (pytorch/pytorch#190489).
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def device_of(name: str) -> torch.device:
    """The device for a name in the config.

    Raises:
        ConfigError: There is no device of that kind here.
    """
    if name == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else mps)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is '{name}': no CUDA device here: choose cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device is 'mps': none here: choose cpu or auto")
    return device
