"""Metrics over a whole split."""

import math

import torch
from torch import nn

from seven_exp.datasets import Batches
from seven_exp.training.compute import Compute
from seven_exp.training.loop import DivergedError


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, compute: Compute) -> dict[str, float]:
    """The task's metrics over a whole split; the model's mode is restored.

    Raises:
        DivergedError: As `split_loss`.
    """
    training = model.training
    model.eval()
    loss, seen, evidence = torch.zeros((), device=compute.device), 0, []
    last = None
    for batch in batches.epoch(0):
        if not len(batch[1]):
            if last is not None:
                # Ranks that share weights need each other in every pass.
                compute.loss(model, *last)
            continue
        last = inputs, targets = compute.place(batch)
        mean_loss, logits = compute.loss(model, inputs, targets)
        weight = compute.task.weight(targets)
        if weight:
            loss += mean_loss * weight
        seen += weight
        evidence.append(compute.task.evidence(logits, targets))
    model.train(training)
    parts = compute.world.gather((torch.cat(evidence).cpu(), loss.item(), seen))
    whole = torch.cat([part for part, _, _ in parts])
    losses, numbers = [loss for _, loss, _ in parts], [seen for _, _, seen in parts]
    metrics = compute.task.metrics(whole, split_loss(sum(losses), sum(numbers)))
    # A record holds plain numbers; a metric of the user's own may return a tensor.
    return {name: float(value) for name, value in metrics.items()}


def split_loss(total: float, number: int) -> float:
    """The mean of a split's losses.

    Raises:
        DivergedError: It is NaN: the outputs are broken, and a class chosen from them is none.
    """
    if math.isnan(total):
        raise DivergedError("the loss on a whole split is NaN: the model's outputs are broken")
    return total / max(1, number)
