"""The training loop and the evaluation: a model, batches and a pruner in; figures out."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.datasets import Batch, Batches
from seven_exp.tasks import Classification, Inputs, Task, forward
from seven_exp.training.world import World


class DivergedError(RuntimeError):
    """The loss is no longer a finite number, or there is nothing to choose masks by."""


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


@dataclass
class Tally:
    """Sums since the last report, on the device: reading them waits for it.

    Attributes:
        sums: float32 of shape (3,): losses, hits among the training batches, and the number of
            targets that they are counted among.
        taken: Steps.
    """

    sums: Tensor
    taken: int = 0

    @classmethod
    def empty(cls, device: torch.device) -> "Tally":
        """Nothing yet."""
        return cls(torch.zeros(3, device=device))

    def take(self, step: int, lr: float) -> Progress:
        """The means, after which it is empty."""
        loss, hits, judged = self.sums.tolist()
        progress = Progress(step, loss / self.taken, hits / judged if judged else None, lr)
        self.sums.zero_()
        self.taken = 0
        return progress


@dataclass(frozen=True)
class Compute:
    """Where, how and for what tensors are computed; ``layout`` is that of images in memory."""

    device: torch.device
    precision: str = "fp32"
    task: Task = field(default_factory=Classification)
    world: World = field(default_factory=World)
    layout: torch.memory_format = torch.preserve_format

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
        return inputs.to(self.device, non_blocking=True, memory_format=self.layout), targets

    def loss(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The task's mean loss (a scalar) and the logits, float32."""
        with self.autocast():
            logits = forward(model, inputs)
        logits = logits.float()
        return self.task.loss(logits, targets), logits

    def share(self, weights: Sequence[int]) -> "Callable[[int], float | Tensor]":
        """What a batch of this rank counts, so that the ranks' mean is the whole batches' mean.

        Args:
            weights: `Task.weight` of this rank's parts of the batches of one step.
        """
        if self.world.size == 1:
            return lambda weight: weight / sum(weights)
        total = self.world.total(torch.tensor(float(sum(weights)), device=self.device))
        return lambda weight: weight * self.world.size / total

    def fair_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of this rank's part of a batch, its mean over the ranks being the batch's."""
        weight = self.task.weight(batch[1])
        return self.share([weight])(weight) * self.loss(model, *self.place(batch))[0]


def layout_for(model: nn.Module) -> torch.memory_format:
    """How the images that a model is fed with had best lie in memory.

    On a CPU, convolutions after convolutions and what is between them are faster where the
    channels of a pixel are neighbours, and each hands on the layout that it is fed with. One alone,
    such as cuts the patches of a ViT, gains nothing.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    on_cpu = next(model.parameters()).device.type == "cpu"
    return torch.channels_last if on_cpu and convolutions > 1 else torch.preserve_format


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
    at_rest: Callable[[int], None] = lambda done: None,
    start: int = 0,
    tally: Tally | None = None,
    grad_clip: float | None = None,
    report: Callable[[int], bool] = lambda done: done % 10 == 0,
) -> Iterator[Progress]:
    """Train for ``steps`` optimizer steps, yielding whenever ``report`` says so and at the last.

    Args:
        model: On its device already; where there are several ranks, `World.replicas` of it.
        batches: Gone through again and again; epoch i is ``batches.epoch(i)``.
        optimizer: Over the model's parameters; its rates now are the base rates.
        compute: Device and precision.
        steps: How many steps in all.
        lr_factor: Step -> what the base rates are multiplied by.
        accumulate: Batches a step, weighted as if they were one.
        objective: What is minimised; None: `Compute.loss`.
        after_step: Called with the steps done, after the update and before gradients are cleared.
        at_rest: Called with the steps done once all of a step is over, its report taken in too:
            whoever saves everything then and comes back with ``start`` and ``tally`` loses nothing.
        start: Steps done already.
        tally: Sums since the last report, which this goes on with.
        grad_clip: Largest norm of the gradients.
        report: Whether figures are wanted after so many steps.

    Raises:
        DivergedError: The loss is not finite at a report.
    """
    objective = objective or compute.loss
    base_rates = [group["lr"] for group in optimizer.param_groups]
    tally = Tally.empty(compute.device) if tally is None else tally
    supply = endless(batches, start * accumulate)
    for step in range(start, steps):
        model.train()
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * lr_factor(step)
        parts = list(itertools.islice(supply, accumulate))
        weights = [compute.task.weight(targets) for _, targets in parts]
        share_of = compute.share(weights)
        sums = torch.zeros(3, device=compute.device)
        for number, (batch, weight) in enumerate(zip(parts, weights, strict=True), 1):
            inputs, targets = compute.place(batch)
            last = number == len(parts)
            with contextlib.nullcontext() if last else compute.world.apart(model):
                loss, logits = objective(model, inputs, targets)
                share = share_of(weight)
                (share * loss).backward()
            sums[0] += share * loss.detach() / compute.world.size
            if (met := compute.task.hits(logits.detach(), targets)) is not None:
                sums[1] += met
                sums[2] += len(targets)
        tally.sums += compute.world.total(sums)
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        after_step(step + 1)
        optimizer.zero_grad(set_to_none=True)

        tally.taken += 1
        if report(step + 1) or step + 1 == steps:
            now = tally.take(step + 1, optimizer.param_groups[0]["lr"])
            if not math.isfinite(now.loss):
                raise DivergedError(f"the loss became {now.loss} at step {step + 1} of {steps}")
            yield now
        at_rest(step + 1)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, compute: Compute) -> dict[str, float]:
    """The task's metrics over a whole split; the model's mode is restored."""
    training = model.training
    model.eval()
    loss, seen, evidence = torch.zeros((), device=compute.device), 0, []
    for batch in batches.epoch(0):
        if not len(batch[1]):
            continue
        inputs, targets = compute.place(batch)
        mean_loss, logits = compute.loss(model, inputs, targets)
        weight = compute.task.weight(targets)
        if weight:
            loss += mean_loss * weight
        seen += weight
        evidence.append(compute.task.evidence(logits, targets))
    model.train(training)
    parts = compute.world.gather((torch.cat(evidence).cpu(), loss.item(), seen))
    whole = torch.cat([part for part, _, _ in parts])
    return compute.task.metrics(
        whole, sum(loss for _, loss, _ in parts) / max(1, sum(seen for _, _, seen in parts))
    )


def endless(batches: Batches, skip: int = 0) -> Iterator[Batch]:
    """The batches of epoch 0, 1, 2 and so on, but for the first ``skip``."""
    epoch, start = divmod(skip, max(1, len(batches)))
    if start:
        yield from batches.epoch(epoch, start)
        epoch += 1
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
