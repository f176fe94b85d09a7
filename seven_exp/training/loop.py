"""The training loop: a model, batches and an optimizer in; events out.

Whoever iterates over `train` acts at its events, in the order in which they come::

    for event in train(model, batches, optimizer, compute, recipe):
        match event:
            case Stepped():  # weights are updated, gradients are still there
                pruner.step()
            case Reported():  # figures since the last report
                print(event.step, event.loss)
            case Rested():  # nothing is under way: the moment for a checkpoint
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
    """The loss is no longer a finite number, or there is nothing to choose masks by."""


class Stepped(NamedTuple):
    """The weights are updated for the ``step``-th time; gradients are not cleared yet."""

    step: int


class Reported(NamedTuple):
    """Figures are wanted after this step.

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


class Rested(NamedTuple):
    """All of a step is over, its report included.

    Whoever saves everything now, and comes back with ``start`` and ``tally``, loses nothing.
    """

    step: int


Event = Stepped | Reported | Rested


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

    def take(self, step: int, lr: float) -> Reported:
        """The means, after which it is empty."""
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
        steps: Optimizer steps in all.
        lr_factor: Step -> what the base rates are multiplied by.
        accumulate: Batches a step, weighted as if they were one.
        grad_clip: Largest norm of the gradients.
        objective: What is minimised; None: `Compute.loss`.
        reports: Whether figures are wanted after so many steps; they always are after the last.
    """

    steps: int
    lr_factor: Callable[[int], float]
    accumulate: int = 1
    grad_clip: float | None = None
    objective: Objective | None = None
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
        model: On its device already; where there are several ranks, `World.replicas` of it.
        batches: Gone through again and again; epoch i is ``batches.epoch(i)``.
        optimizer: Over the model's parameters; its rates now are the base rates.
        compute: Device and precision.
        recipe: Number of steps, learning rate, objective.
        start: Steps done already.
        tally: Sums since the last report, which this goes on with.

    Yields:
        After each step `Stepped`, then `Reported` where the recipe asks for it, then `Rested`.

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
        tally.sums += _accumulate(model, parts, compute, recipe.objective or compute.loss)
        tally.taken += 1
        if recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        done = step + 1
        yield Stepped(done)
        optimizer.zero_grad(set_to_none=True)

        if recipe.reports(done) or done == recipe.steps:
            now = tally.take(done, optimizer.param_groups[0]["lr"])
            if not math.isfinite(now.loss):
                raise DivergedError(f"the loss became {now.loss} at step {done} of {recipe.steps}")
            yield now
        yield Rested(done)


def _accumulate(
    model: nn.Module, batches: list[Batch], compute: Compute, objective: Objective
) -> Tensor:
    """Add the gradients of the batches' mean loss; float32 of shape (3,), as `Tally.sums`."""
    weights = [compute.task.weight(targets) for _, targets in batches]
    share_of = compute.share(weights)
    sums = torch.zeros(3, device=compute.device)
    for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
        inputs, targets = compute.place(batch)
        last = number == len(batches)
        with contextlib.nullcontext() if last else compute.world.apart(model):
            loss, logits = objective(model, inputs, targets)
            share = share_of(weight)
            (share * loss).backward()  # type: ignore[no-untyped-call]
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
