"""The training loop: takes a model, batches and an optimizer; yields events.

The caller iterates over `train` and acts on its events, in this order::

    for event in train(model, batches, optimizer, compute, recipe):
        match event:
            case Stepped():  # weights are updated, gradients still exist
                pruner.step()
            case Reported():  # metrics since the last report
                print(event.step, event.loss)
            case Rested():  # no work is pending: time for a checkpoint
                save(event.step)
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seven_exp.datasets import Batch, Batches
from seven_exp.tasks import Inputs
from seven_exp.training.compute import Compute


class DivergedError(RuntimeError):
    """The loss is not finite, or there is no evidence to choose masks."""


class Stepped(NamedTuple):
    """The weights are updated for the ``step``-th time; gradients are not yet cleared."""

    step: int


class Reported(NamedTuple):
    """Metrics are due after this step.

    Attributes:
        step: Number of optimizer steps so far.
        loss: Mean over the steps since the last report.
        accuracy: The same mean on the training batches; None if the task has no accuracy.
        lr: Learning rate of the step.
    """

    step: int
    loss: float
    accuracy: float | None
    lr: float


class Rested(NamedTuple):
    """A step is complete, including its report.

    If the caller saves everything now, and later passes ``start`` and ``tally``, nothing is lost.
    """

    step: int


Event = Stepped | Reported | Rested


@dataclass
class Tally:
    """Sums since the last report, on the device: reading them synchronises.

    Attributes:
        sums: float32 of shape (3,): losses, correct predictions on the training batches, and the
            number of targets that these are counted on.
        taken: Number of steps.
    """

    sums: Tensor
    taken: int = 0

    @classmethod
    def empty(cls, device: torch.device) -> "Tally":
        """Sums of zero."""
        return cls(torch.zeros(3, device=device))

    def take(self, step: int, lr: float) -> Reported:
        """Return the means and reset the sums."""
        loss, hits, judged = self.sums.tolist()
        now = Reported(step, loss / self.taken, hits / judged if judged else None, lr)
        self.sums.zero_()
        self.taken = 0
        return now


Objective = Callable[[nn.Module, Inputs, Tensor], tuple[Tensor, Tensor]]
"""``objective(model, inputs, targets)``: a scalar to minimise, and the logits."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: Total number of optimizer steps.
        lr_factor: Step -> factor of the base learning rates.
        accumulate: Batches per step, weighted like one batch.
        grad_clip: Largest norm of the gradients.
        objective: The loss to minimise; None: `Compute.loss`.
        scaler: Scales the loss, and skips steps whose gradients are not finite; None: no scaling.
        raised: Moves the weights to where the loss is higher within its context; the step uses the
            gradients of there. None: those of the weights themselves.
        reports: Whether to report after this many steps; the last step always reports.
    """

    steps: int
    lr_factor: Callable[[int], float]
    accumulate: int = 1
    grad_clip: float | None = None
    objective: Objective | None = None
    scaler: torch.amp.GradScaler | None = None
    raised: Callable[[], contextlib.AbstractContextManager[None]] | None = None
    reports: Callable[[int], bool] = lambda done: done % 10 == 0


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    recipe: Recipe,
    start: int = 0,
    tally: Tally | None = None,
) -> Iterator[Event]:
    """Train, step by step.

    Args:
        model: On its device; with several ranks, `World.replicas` of it.
        batches: Repeated; epoch i is ``batches.epoch(i)``.
        optimizer: Over the model's parameters; its present rates are the base rates.
        compute: Device and precision.
        recipe: Number of steps, learning rate, objective.
        start: Number of finished steps.
        tally: Sums since the last report, to continue from.

    Yields:
        After each step `Stepped`, then `Reported` if the recipe says so, then `Rested`.

    Raises:
        DivergedError: The loss is not finite at a report.
    """
    base_rates = [group["lr"] for group in optimizer.param_groups]
    tally = Tally.empty(compute.device) if tally is None else tally
    supply = endless(batches, start * recipe.accumulate)
    for step in range(start, recipe.steps):
        model.train()
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * recipe.lr_factor(step)
        parts = list(itertools.islice(supply, recipe.accumulate))
        tally.sums += _accumulate(model, parts, compute, recipe)
        tally.taken += 1
        if recipe.raised is not None:
            with recipe.raised():
                optimizer.zero_grad(set_to_none=True)
                _accumulate(model, parts, compute, recipe)
        if recipe.scaler is not None:
            recipe.scaler.unscale_(optimizer)
        if recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        if recipe.scaler is None:
            optimizer.step()
        else:
            recipe.scaler.step(optimizer)
            recipe.scaler.update()
        done = step + 1
        yield Stepped(done)
        optimizer.zero_grad(set_to_none=True)

        if recipe.reports(done) or done == recipe.steps:
            now = tally.take(done, optimizer.param_groups[0]["lr"])
            if not math.isfinite(now.loss):
                raise DivergedError(f"the loss became {now.loss} at step {done} of {recipe.steps}")
            yield now
        yield Rested(done)


def _accumulate(model: nn.Module, batches: list[Batch], compute: Compute, recipe: Recipe) -> Tensor:
    """Add the gradients of the batches' mean loss; returns float32 (3,), as `Tally.sums`."""
    objective = recipe.objective or compute.loss
    weights = [compute.task.weight(targets) for _, targets in batches]
    share_of = compute.share(weights)
    sums = torch.zeros(3, device=compute.device)
    for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
        inputs, targets = compute.place(batch)
        last = number == len(batches)
        with contextlib.nullcontext() if last else compute.world.apart(model):
            loss, logits = objective(model, inputs, targets)
            share = share_of(weight)
            part = share * loss
            if recipe.scaler is not None:
                part = recipe.scaler.scale(part)
            part.backward()  # type: ignore[no-untyped-call]
        sums[0] += share * loss.detach() / compute.world.size
        if (met := compute.task.hits(logits.detach(), targets)) is not None:
            sums[1] += met
            sums[2] += len(targets)
    return compute.world.total(sums)


def endless(batches: Batches, skip: int = 0) -> Iterator[Batch]:
    """The batches of epoch 0, 1, 2 and so on, without the first ``skip``."""
    epoch, start = divmod(skip, max(1, len(batches)))
    if start:
        yield from batches.epoch(epoch, start)
        epoch += 1
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
