"""GraSP: preserve the flow of gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.criteria.base import Criterion, LossFunction, cleaned
from seven_exp.pruning.outputs import logits_of
from seven_exp.pruning.registry import register

_TEMPERATURE = 200.0
"""Logits are divided by it, as in the authors' code, so that the loss is smooth."""


class _Tempered(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return logits_of(self.model(*args, **kwargs)) / _TEMPERATURE


@register("grasp", when="before", schedule="one_shot")
class Grasp(Criterion):
    """w * (H g), signed; the lowest go, those whose removal raises the gradient's norm.

    (Wang et al., "Picking winning tickets before training by preserving gradient flow",
    arXiv 2002.07376, eq. 8; its score is the negative of this and its highest go.)
    """

    uses_gradients = True
    only_before = True

    def measure(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        values: Sequence[Tensor],
        batches: Sequence[Any],
        loss_fn: LossFunction,
    ) -> None:
        """Two passes: g over all batches, then H g batch by batch, H never formed."""
        model, parameters = _Tempered(model), list(weights)
        total = [torch.zeros_like(weight) for weight in weights]
        for batch in batches:
            grads = torch.autograd.grad(loss_fn(model, batch), parameters, allow_unused=True)
            torch._foreach_add_(total, self.averaged(cleaned(grads, weights)))
        self.state.clear()
        products = self.zeros("hessian_gradient", weights)
        # Fused attention has no second derivative.
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            for batch in batches:
                grads = torch.autograd.grad(
                    loss_fn(model, batch), parameters, create_graph=True, allow_unused=True
                )
                along = [(g * t).sum() for g, t in zip(grads, total, strict=True) if g is not None]
                product = torch.autograd.grad(sum(along), parameters, allow_unused=True)  # type: ignore[arg-type]
                torch._foreach_add_(products, self.averaged(cleaned(product, weights)))

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """W (H g)."""
        return [
            weight.detach() * product
            for weight, product in zip(
                weights, self.zeros("hessian_gradient", weights), strict=True
            )
        ]
