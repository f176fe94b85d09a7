"""Compares two models on the same data: the difference of their logits, and both metrics."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seven_exp.console import progress_bar
from seven_exp.datasets import Batches
from seven_exp.tasks import Task, forward


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        examples: Number of examples.
        difference: Largest absolute difference of a logit.
        largest: Largest absolute logit of the first model.
        metric: The task's headline.
        value: Of the first model.
        other: Of the second model.
    """

    examples: int
    difference: float
    largest: float
    metric: str
    value: float
    other: float

    @property
    def same(self) -> bool:
        """Whether the models agree up to float32 rounding through many layers."""
        return self.difference <= 1e-4 * max(1.0, self.largest) and math.isclose(
            self.value, self.other, rel_tol=1e-3, abs_tol=1e-3
        )


@torch.no_grad()
def compare(
    model: nn.Module, other: nn.Module, batches: Batches, task: Task, limit: int | None
) -> Comparison:
    """Run both models on a split.

    Args:
        model: On the CPU, in evaluation mode.
        other: On the CPU, in evaluation mode.
        batches: The split.
        task: Computes the metric.
        limit: Number of batches; None: all.
    """
    # A tensor's maximum is NaN if one of its numbers is.
    difference, largest = torch.zeros(2)
    examples = seen = 0
    losses = [0.0, 0.0]
    evidence: tuple[list[Tensor], list[Tensor]] = ([], [])
    total = min(len(batches), limit or len(batches))
    with progress_bar("comparing", total) as advance:
        for done, (inputs, targets) in enumerate(itertools.islice(batches.epoch(0), total), 1):
            both = [forward(each, inputs).float() for each in (model, other)]
            apart = (both[0] - both[1]).abs().masked_fill(both[0] == both[1], 0.0)
            difference = torch.maximum(difference, apart.max())
            largest = torch.maximum(largest, both[0].abs().max())
            weight = task.weight(targets)
            for i, logits in enumerate(both):
                losses[i] += task.loss(logits, targets).item() * weight if weight else 0.0
                evidence[i].append(task.evidence(logits, targets))
            examples, seen = examples + len(targets), seen + weight
            advance(done, "")
    values = [
        task.metrics(torch.cat(evidence[i]), losses[i] / max(1, seen))[task.metric] for i in (0, 1)
    ]
    return Comparison(
        examples, difference.item(), largest.item(), task.metric, values[0], values[1]
    )
