"""The processes that train one model together, or the one that trains it alone.

accelerate rather than our own calls: it finds the backend and the device for each kind of
accelerator, and those who fine-tune transformers' models have it.
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
    """Ranks 0 to ``size`` - 1; every method that exchanges something is called on all of them.

    Attributes:
        rank: This process.
        size: How many there are.
        accelerator: Accelerate's; None for one process.
    """

    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """What this rank's generators start from: dropout is its own."""
        return seed if self.main else epoch_seed(seed, self.rank)

    def replicas(self, model: nn.Module) -> nn.Module:
        """The model, whose backward pass averages gradients over the ranks."""
        if self.size == 1:
            return model
        return cast(nn.Module, self.accelerator.prepare_model(model, device_placement=False))

    def apart(self, model: nn.Module) -> AbstractContextManager[Any]:
        """While it lasts, the backward pass of `replicas` averages nothing."""
        return contextlib.nullcontext() if self.size == 1 else self.accelerator.no_sync(model)

    def total(self, numbers: Tensor) -> Tensor:
        """Their sum over the ranks, the same bits on all."""
        return numbers if self.size == 1 else self.accelerator.reduce(numbers, "sum")

    def any(self, condition: bool) -> bool:
        """Whether it holds on some rank."""
        return condition if self.size == 1 else any(self.gather(condition))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank; on the CPU."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def told(self, value: Any) -> Any:
        """What the main rank says; the others' words count for nothing."""
        return self.gather(value if self.main else None)[0]

    def in_turn(self) -> AbstractContextManager[Any]:
        """The main rank does what is inside before the others: it may fill a cache for them."""
        if self.size == 1:
            return contextlib.nullcontext()
        return cast(AbstractContextManager[Any], self.accelerator.main_process_first())


def join(device: str) -> tuple[World, torch.device]:
    """Meet the other processes, if there are any; the device that this one computes on.

    Args:
        device: auto, cpu, mps, cuda or cuda:N.

    Raises:
        ConfigError: There is no such device, or several processes can't share it.
    """
    # As torchrun and accelerate launch say it.
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
    # Imported once there is a group, its functions' defaults would hold that group for ever.
    importlib.import_module("torch.distributed.nn")
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=kind == "cpu")
    atexit.unregister(_leave)
    atexit.register(_leave)
    world = World(accelerator.process_index, accelerator.num_processes, accelerator)
    return world, accelerator.device


def _leave() -> None:
    """Let go of the group while there is an interpreter.

    A thread of gloo's that let go of a tensor any later would abort the process
    (pytorch/pytorch#190489).
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def device_of(name: str) -> torch.device:
    """The device that a word of the config stands for.

    Raises:
        ConfigError: There is none of that kind here.
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
