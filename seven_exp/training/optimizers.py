"""Optimizers by name, and how the learning rate moves."""

import math

import torch
from torch import nn

from seven_exp.registry import Registry

OPTIMIZERS: Registry[type[torch.optim.Optimizer]] = Registry("optimizer")
OPTIMIZERS.add("adamw", torch.optim.AdamW)
OPTIMIZERS.add("adam", torch.optim.Adam)
OPTIMIZERS.add("sgd", torch.optim.SGD)


def build_optimizer(
    name: str, model: nn.Module, *, lr: float, weight_decay: float = 0.0, **arguments: object
) -> torch.optim.Optimizer:
    """An optimizer over a model's trainable parameters; vectors (biases, norms) do not decay.

    Raises:
        ValueError: Unknown name or a value that the optimizer refuses.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if isinstance(betas := arguments.get("betas"), list):
        arguments["betas"] = tuple(betas)
    factory: type = OPTIMIZERS[name]
    optimizer = factory(groups, lr=lr, **arguments)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def lr_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """What the base rate is multiplied by at ``step`` of ``steps``, after ``warmup`` linear steps.

    "constant" stays at 1, "linear" and "cosine" fall to 0 at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0
