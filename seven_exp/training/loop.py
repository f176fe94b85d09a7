"""The training loop and the evaluation: a model, batches and a pruner in; figures out."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.datasets import Batch, Batches
from seven_exp.tasks import Classification, Inputs, Task, forward


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step.

    Attributes:
        step: Optimizer steps done.
        loss: Mean over the steps since the last report.
        accuracy: Likewise, on the training batches; None where the task has no such thing.
        lr: Learning rate of the step.
    """

    step: int
    loss: float
    accuracy: float | None
    lr: float


@dataclass(frozen=True)
class Compute:
    """Where, how and for what tensors are computed."""

    device: torch.device
    precision: str = "fp32"
    task: Task = field(default_factory=Classification)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast, or nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def place(self, batch: Batch) -> Batch:
        """The batch on the device."""
        inputs, targets = batch
        targets = targets.to(self.device, non_blocking=True)
        if isinstance(inputs, Mapping):
            return {k: v.to(self.device, non_blocking=True) for k, v in inputs.items()}, targets
        return inputs.to(self.device, non_blocking=True), targets

    def loss(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The task's mean loss (a scalar) and the logits, float32."""
        with self.autocast():
            logits = forward(model, inputs)
        logits = logits.float()
        return self.task.loss(logits, targets), logits


Objective = Callable[[nn.Module, Inputs, Tensor], tuple[Tensor, Tensor]]
"""``objective(model, inputs, targets)``: a scalar to minimise, and the logits."""


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    *,
    steps: int,
    lr_factor: Callable[[int], float],
    accumulate: int = 1,
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
        accumulate: Batches a step, weighted as if they were one.
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
    judged = taken = 0
    supply = endless(batches)
    for step in range(steps):
        model.train()
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * lr_factor(step)
        parts = list(itertools.islice(supply, accumulate))
        weights = [compute.task.weight(targets) for _, targets in parts]
        for batch, weight in zip(parts, weights, strict=True):
            inputs, targets = compute.place(batch)
            loss, logits = objective(model, inputs, targets)
            share = weight / sum(weights)
            (loss if share == 1 else share * loss).backward()
            loss_sum += share * loss.detach()
            if (met := compute.task.hits(logits.detach(), targets)) is not None:
                hits += met
                judged += len(targets)
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        after_step(step + 1)
        optimizer.zero_grad(set_to_none=True)

        taken += 1
        if report(step + 1) or step + 1 == steps:
            mean_loss = loss_sum.item() / taken
            if not math.isfinite(mean_loss):
                raise DivergedError(f"the loss became {mean_loss} at step {step + 1} of {steps}")
            lr = optimizer.param_groups[0]["lr"]
            yield Progress(step + 1, mean_loss, hits.item() / judged if judged else None, lr)
            loss_sum.zero_()
            hits.zero_()
            judged = taken = 0


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, compute: Compute) -> dict[str, float]:
    """The task's metrics over a whole split; the model's mode is restored."""
    training = model.training
    model.eval()
    loss, seen, evidence = torch.zeros((), device=compute.device), 0, []
    for batch in batches.epoch(0):
        inputs, targets = compute.place(batch)
        mean_loss, logits = compute.loss(model, inputs, targets)
        weight = compute.task.weight(targets)
        if weight:
            loss += mean_loss * weight
        seen += weight
        evidence.append(compute.task.evidence(logits, targets))
    model.train(training)
    return compute.task.metrics(torch.cat(evidence).cpu(), loss.item() / max(1, seen))


def endless(batches: Batches) -> Iterator[Batch]:
    """The batches of epoch 0, 1, 2 and so on."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
