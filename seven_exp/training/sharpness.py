"""Sharpness-aware minimisation: the gradient is taken where the loss is highest nearby."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def raised(model: nn.Module, rho: float, apply_masks: Callable[[], None]) -> Iterator[None]:
    """Within the context the weights are w + rho g / |g|, with zeros where the masks say so.

    (Foret et al., arXiv 2010.01412, eq. 2.) |g| is the norm of all gradients together. Afterwards
    the weights are w again, to the bit.

    Args:
        model: With the gradients g at w.
        rho: Distance.
        apply_masks: Sets pruned weights to zero.
    """
    weights = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in weights if p.grad is not None]
    before = [p.detach().clone() for p in weights]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(gradient * (rho / (norm + 1e-12)))
        apply_masks()
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
