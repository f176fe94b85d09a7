"""GraSP: preserve the flow of gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.criteria.base import Criterion, LossFunction, cleaned, finite
from seven_exp.pruning.outputs import logits_of
from seven_exp.pruning.registry import register


@register("grasp", when="before", schedule="one_shot")
class Grasp(Criterion):
    """w * (H g), signed; the lowest go, those whose removal raises the gradient's norm.

    (Wang et al., "Picking winning tickets before training by preserving gradient flow",
    arXiv 2002.07376, eq. 8; its score is the negative of this and its highest go.)

    Args:
        temperature: Logits are divided by it, so that the loss is smooth: 200 in the authors' code.
            It changes the order of the scores. Meant for classes; 1 leaves the loss as it is.
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
        with model.register_forward_hook(self._tempered):
            for batch in batches:
                loss = finite(loss_fn(model, batch))
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                torch._foreach_add_(total, self.averaged(cleaned(grads, weights)))
        self.state.clear()
        products = self.zeros("hessian_gradient", weights)
        # Fused attention has no second derivative.
        unfused = nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)
        with model.register_forward_hook(self._tempered), unfused:
            for batch in batches:
                grads = torch.autograd.grad(
                    loss_fn(model, batch), parameters, create_graph=True, allow_unused=True
                )
                along = [(g * t).sum() for g, t in zip(grads, total, strict=True) if g is not None]
                product = torch.autograd.grad(sum(along), parameters, allow_unused=True)  # type: ignore[arg-type]
                torch._foreach_add_(products, self.averaged(cleaned(product, weights)))

    def _tempered(self, model: nn.Module, inputs: Any, outputs: Any) -> Tensor:
        return logits_of(outputs) / self.temperature

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """W (H g)."""
        return [
            weight.detach() * product
            for weight, product in zip(
                weights, self.zeros("hessian_gradient", weights), strict=True
            )
        ]
