"""The training loop and the evaluation: a model, batches and a pruner in; figures out."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seven_exp.datasets import Batches


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step.

    Attributes:
        step: Optimizer steps done.
        loss: Mean over the steps since the last report.
        accuracy: Likewise, on the training batches.
        lr: Learning rate of the step.
    """

    step: int
    loss: float
    accuracy: float
    lr: float


@dataclass(frozen=True)
class Compute:
    """Where and how tensors are computed."""

    device: torch.device
    precision: str = "fp32"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast, or nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def place(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch on the device."""
        inputs, targets = batch
        return (
            inputs.to(self.device, non_blocking=True),
            targets.to(self.device, non_blocking=True),
        )

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (a scalar) and the logits, float32 of shape (batch, classes)."""
        with self.autocast():
            logits = model(inputs)
        logits = logits.float()
        return functional.cross_entropy(logits, targets), logits


Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``objective(model, inputs, targets)``: a scalar to minimise, and the logits."""


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    *,
    steps: int,
    lr_factor: Callable[[int], float],
    objective: Objective | None = None,
    after_step: Callable[[int], None] = lambda done: None,
    grad_clip: float | None = None,
    report: Callable[[int], bool] = lambda done: done % 10 == 0,
) -> Iterator[Progress]:
    """Train for ``steps`` optimizer steps, yielding whenever ``report`` says so and at the last.

    Args:
        model: On its device already.
        batches: Gone through again and again; epoch i is ``batches.epoch(i)``.
        optimizer: Over the model's parameters; its rates now are the base rates.
        compute: Device and precision.
        steps: How many steps in all.
        lr_factor: Step -> what the base rates are multiplied by.
        objective: What is minimised; None: `Compute.loss`.
        after_step: Called with the steps done, after the update and before gradients are cleared.
        grad_clip: Largest norm of the gradients.
        report: Whether figures are wanted after so many steps.

    Raises:
        DivergedError: The loss is not finite at a report.
    """
    objective = objective or compute.loss
    base_rates = [group["lr"] for group in optimizer.param_groups]
    # Sums since the last report, kept on the device: reading them waits for it.
    loss_sum, hits = torch.zeros(2, device=compute.device)
    seen = taken = 0
    for step, batch in zip(range(steps), endless(batches), strict=False):
        model.train()
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * lr_factor(step)
        inputs, targets = compute.place(batch)
        loss, logits = objective(model, inputs, targets)
        loss.backward()
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        after_step(step + 1)
        optimizer.zero_grad(set_to_none=True)

        loss_sum += loss.detach()
        hits += (logits.detach().argmax(1) == targets).sum()
        seen, taken = seen + len(targets), taken + 1
        if report(step + 1) or step + 1 == steps:
            mean_loss = loss_sum.item() / taken
            if not math.isfinite(mean_loss):
                raise DivergedError(f"the loss became {mean_loss} at step {step + 1} of {steps}")
            lr = optimizer.param_groups[0]["lr"]
            yield Progress(step + 1, mean_loss, hits.item() / seen, lr)
            loss_sum.zero_()
            hits.zero_()
            seen = taken = 0


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, compute: Compute) -> dict[str, float]:
    """Accuracy (a fraction) and mean cross-entropy over a whole split; the mode is restored."""
    training = model.training
    model.eval()
    loss, hits = torch.zeros(2, device=compute.device)
    seen = 0
    for batch in batches.epoch(0):
        inputs, targets = compute.place(batch)
        mean_loss, logits = compute.loss(model, inputs, targets)
        loss += mean_loss * len(targets)
        hits += (logits.argmax(1) == targets).sum()
        seen += len(targets)
    model.train(training)
    return {"accuracy": hits.item() / seen, "loss": loss.item() / seen}


def endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of epoch 0, 1, 2 and so on."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
