"""GraSP: preserve the flow of gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.criteria.base import Criterion, LossFunction, cleaned, finite
from seven_exp.pruning.outputs import tempered
from seven_exp.pruning.registry import register


@register("grasp", when="before", schedule="one_shot")
class Grasp(Criterion):
    """w * (H g), signed; the lowest go, those whose removal raises the gradient's norm.

    (Wang et al., "Picking winning tickets before training by preserving gradient flow",
    arXiv 2002.07376, eq. 8; its score is the negative of this and its highest go.)

    Args:
        temperature: Logits are divided by it, so that the loss is smooth: 200 in the authors' code.
            It changes the order of the scores. Meant for classes; 1 leaves the loss as it is. A
            model that computes its loss inside is reached through its output layers.
    """

    uses_gradients = True
    only_before = True

    def __init__(self, *, temperature: float = 200.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: choose a positive number")
        self.temperature = temperature

    def measure(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        values: Sequence[Tensor],
        batches: Sequence[Any],
        loss_fn: LossFunction,
    ) -> None:
        """Two passes: g over all batches, then H g batch by batch, H never formed."""
        parameters = list(weights)
        total = [torch.zeros_like(weight) for weight in weights]
        # Fused attention has no second derivative.
        unfused = nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)
        with tempered(model, self.temperature, partial(loss_fn, model, batches[0])):
            for batch in batches:
                loss = finite(loss_fn(model, batch))
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                torch._foreach_add_(total, self.averaged(cleaned(grads, weights)))
            self.state.clear()
            products = self.zeros("hessian_gradient", weights)
            with unfused:
                for batch in batches:
                    self._add_product(products, finite(loss_fn(model, batch)), parameters, total)

    def _add_product(
        self,
        products: list[Tensor],
        loss: Tensor,
        parameters: list[Tensor],
        total: Sequence[Tensor],
    ) -> None:
        """H g of one batch: the slope of its gradient along g."""
        grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        along = [(g * t).sum() for g, t in zip(grads, total, strict=True) if g is not None]
        product = torch.autograd.grad(sum(along), parameters, allow_unused=True)  # type: ignore[arg-type]
        torch._foreach_add_(products, self.averaged(cleaned(product, parameters)))

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """W (H g)."""
        return [
            weight.detach() * product
            for weight, product in zip(
                weights, self.zeros("hessian_gradient", weights), strict=True
            )
        ]
