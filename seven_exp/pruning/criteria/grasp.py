"""GraSP: preserve the flow of gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.bounds import above_zero
from seven_exp.pruning.criteria.score import (
    LossFunction,
    Mean,
    ModelScore,
    Tensors,
    cleaned,
    finite,
    precision,
)
from seven_exp.pruning.outputs import tempered
from seven_exp.pruning.registry import register

_SPACE = {"temperature": "tag(log,interval(1.0,1000.0))"}


@register("grasp", when="before", schedule="one_shot", space=_SPACE)
class Grasp(ModelScore):
    """w * (H g), signed; it prunes the lowest, whose removal raises the gradient's norm.

    (Wang et al., "Picking winning tickets before training by preserving gradient flow",
    arXiv 2002.07376, eq. 8. The paper's score has the opposite sign and prunes the highest.)

    Args:
        temperature: Divides the logits to make the loss smooth; 200 in the authors' code. It
            changes the order of the scores. It is meant for classification; 1 leaves the loss
            unchanged. If a model computes its loss itself, the outputs of its output layers are
            divided.
    """

    def __init__(self, *, temperature: float = 200.0) -> None:
        above_zero(temperature=temperature)
        self.temperature = temperature

    def score(
        self,
        model: nn.Module,
        weights: Tensors,
        batches: Sequence[Any],
        loss_fn: LossFunction,
        mean: Mean,
    ) -> list[Tensor]:
        """Two passes: g over all batches, then H g batch by batch, H never formed."""
        total = [torch.zeros_like(weight) for weight in weights]
        products = [torch.zeros_like(weight, dtype=precision(weight)) for weight in weights]
        # Fused attention has no second derivative.
        unfused = nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)
        with tempered(model, self.temperature, partial(loss_fn, model, batches[0])):
            for batch in batches:
                loss = finite(loss_fn(model, batch))
                grads = torch.autograd.grad(loss, list(weights), allow_unused=True)
                torch._foreach_add_(total, mean(cleaned(grads, weights)))
            with unfused:
                for batch in batches:
                    product = _product(finite(loss_fn(model, batch)), weights, total)
                    torch._foreach_add_(products, mean(cleaned(product, weights)))
        return [weight.detach() * p for weight, p in zip(weights, products, strict=True)]


def _product(loss: Tensor, weights: Tensors, total: Tensors) -> Sequence[Tensor | None]:
    """H g of one batch: the derivative of its gradient along g."""
    grads = torch.autograd.grad(loss, list(weights), create_graph=True, allow_unused=True)
    along = [(g * t).sum() for g, t in zip(grads, total, strict=True) if g is not None]
    return torch.autograd.grad(sum(along[1:], along[0]), list(weights), allow_unused=True)
