"""Optimizers by name."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.layers import prunable_layers
from seven_exp.registry import Registry
from seven_exp.training.muon import AVAILABLE, Muon

Groups = list[dict[str, Any]]

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry("optimizer")
"""Factories ``(groups, lr, *, **arguments)`` over torch's parameter groups; one with an argument
`matrices` gets the hidden matrices, those that are prunable by default."""


@OPTIMIZERS.register("adamw")
def adamw(groups: Groups, lr: float, *, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


@OPTIMIZERS.register("adam")
def adam(groups: Groups, lr: float, *, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, arXiv 1412.6980)."""
    return torch.optim.Adam(groups, lr=lr, betas=betas)


@OPTIMIZERS.register("adamax")
def adamax(groups: Groups, lr: float, *, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Adam in the infinity norm (same source, section 7.1)."""
    return torch.optim.Adamax(groups, lr=lr, betas=betas)


@OPTIMIZERS.register("sgd")
def sgd(groups: Groups, lr: float, *, momentum: float, nesterov: bool) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


@OPTIMIZERS.register("muon")
def muon(
    groups: Groups,
    lr: float,
    *,
    matrices: Collection[Tensor],
    momentum: float,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    """Muon for hidden matrices, AdamW for the rest; see `Muon`."""
    check_optimizer("muon")
    return Muon(groups, lr, matrices, momentum, betas)


def check_optimizer(name: str) -> None:
    """Check that this version of torch has what the optimizer needs.

    Raises:
        ValueError: It has not.
    """
    if name == "muon" and not AVAILABLE:
        raise ValueError(
            f"optimizer.name is 'muon': torch {torch.__version__} has no Muon; install torch 2.9 "
            "or newer, or choose adamw"
        )


def build_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay_norms_and_biases: bool = False,
    **arguments: Any,
) -> torch.optim.Optimizer:
    """Create an optimizer for a model's trainable parameters.

    Args:
        name: A registered name.
        model: The model.
        lr: Base learning rate.
        weight_decay: Of weights of two or more dimensions.
        decay_norms_and_biases: Whether it is also that of parameters of fewer dimensions.
        **arguments: The optimizer's own keywords.

    Raises:
        ValueError: The name is unknown, or the optimizer refuses a value.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    few = weight_decay if decay_norms_and_biases else 0.0
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": few},
    ]
    make = OPTIMIZERS[name]
    if "matrices" in inspect.signature(make).parameters:
        layers = prunable_layers(model)  # no embeddings and no output layers
        arguments["matrices"] = [x.weight for x in layers if x.weight.ndim == 2]
    return make(groups, lr, **arguments)


def planned_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that an optimizer holds after a step: it takes one.

    Args:
        optimizer: New, over parameters on the meta device.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
