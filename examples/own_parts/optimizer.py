"""An optimizer: the sign of a running mean of the gradients (Chen et al., arXiv 2302.06675)."""

from typing import Any

import torch

from seven_exp.training.optimizers import OPTIMIZERS


class Lion(torch.optim.Optimizer):
    """w -= lr (sign(b1 m + (1 - b1) g) + decay w);  m = b2 m + (1 - b2) g."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                direction = mean.lerp(weight.grad, 1 - first).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"])
                mean.lerp_(weight.grad, 1 - second)


@OPTIMIZERS.register("own_lion")
def own_lion(groups: Any, lr: float, *, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Weight decay comes with the groups, the other keywords from the YAML."""
    return Lion(groups, lr, betas)
