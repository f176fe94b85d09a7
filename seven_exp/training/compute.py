"""Device, precision, layout and task of the computation."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.datasets import Batch
from seven_exp.tasks import Classification, Inputs, Task, forward
from seven_exp.training.world import World

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def warn_if_slow(device: torch.device, precision: str) -> None:
    """Warn about half precision on a processor that computes it in software."""
    in_software = torch.backends.cpu.get_cpu_capability() == "AVX2"  # bf16 at 1/30 of fp32's speed
    if precision != "fp32" and device.type == "cpu" and in_software:
        warnings.warn(
            f"trainer.precision is '{precision}', which this processor has no instructions for: it "
            "can be many times slower than trainer.precision=fp32",
            stacklevel=2,
        )


@dataclass(frozen=True)
class Compute:
    """Device, precision and task of the computation; ``layout`` is the memory format of images."""

    device: torch.device
    precision: str = "fp32"
    task: Task = field(default_factory=Classification)
    world: World = field(default_factory=World)
    layout: torch.memory_format = torch.preserve_format

    @property
    def half(self) -> torch.dtype | None:
        """The dtype of half precision; None in full precision."""
        return _HALF.get(self.precision)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to half precision, or nothing."""
        if self.half is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.half)

    def scaler(self) -> torch.amp.GradScaler | None:
        """Scales the loss in fp16, whose small gradients would vanish; else None."""
        return torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None

    def place(self, batch: Batch) -> Batch:
        """The batch on the device."""
        inputs, targets = batch
        targets = targets.to(self.device, non_blocking=True)
        if isinstance(inputs, Mapping):
            return {k: v.to(self.device, non_blocking=True) for k, v in inputs.items()}, targets
        return inputs.to(self.device, non_blocking=True, memory_format=self.layout), targets

    def loss(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The task's mean loss (a scalar) and the logits, float32."""
        with self.autocast():
            logits = forward(model, inputs)
        logits = logits.float()
        return self.task.loss(logits, targets), logits

    def smoothed(self, label_smoothing: float) -> "Compute":
        """The same computation with this label smoothing, for training.

        Raises:
            ValueError: The task has no classes.
        """
        if not label_smoothing:
            return self
        if not isinstance(self.task, Classification):
            raise ValueError(
                f"trainer.label_smoothing is {label_smoothing}: the data set has no classes; "
                "choose 0"
            )
        return replace(self, task=replace(self.task, label_smoothing=label_smoothing))

    def share(self, weights: Sequence[int]) -> "Callable[[int], float | Tensor]":
        """Factor of this rank's loss, such that the ranks' mean is the mean over the whole batches.

        Args:
            weights: `Task.weight` of this rank's parts of the batches of one step.
        """
        if self.world.size == 1:
            return lambda weight: weight / sum(weights)
        total = self.world.total(torch.tensor(float(sum(weights)), device=self.device))
        return lambda weight: weight * self.world.size / total

    def fair_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of this rank's part of a batch; its mean over the ranks is the batch's loss."""
        weight = self.task.weight(batch[1])
        return self.share([weight])(weight) * self.loss(model, *self.place(batch))[0]


def layout_for(model: nn.Module, device: torch.device) -> torch.memory_format:
    """The fastest memory format for the images that a model takes.

    On a CPU, consecutive convolutions and the layers between them are faster in channels_last, and
    each passes on the format of its inputs. A single convolution, such as a ViT's patch embedding,
    gains nothing.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    on_cpu = device.type == "cpu"
    return torch.channels_last if on_cpu and convolutions > 1 else torch.preserve_format
