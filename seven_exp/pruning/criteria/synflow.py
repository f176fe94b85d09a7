"""SynFlow: keep the synaptic flow, without data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seven_exp.pruning.criteria.score import LossFunction, Mean, ModelScore, State, Tensors
from seven_exp.pruning.inputs import evaluating
from seven_exp.pruning.outputs import logits_in
from seven_exp.pruning.registry import register


@register("synflow", when="before", schedule="exponential", rounds=100)
class Synflow(ModelScore):
    """|w| * dR/d|w| with R = 1^T f(1; |weights|), f the network with absolute weights.

    (Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic
    flow", arXiv 2006.05467, eq. 2 and algorithm 1.) Only the shape of a batch is used. The
    computation is in float64, because R is a product over layers.
    """

    def init(self, weights: Tensors) -> State:
        """Scores of zero, float64."""
        return State({"score": [torch.zeros_like(w, dtype=torch.float64) for w in weights]})

    def score(
        self,
        model: nn.Module,
        weights: Tensors,
        batches: Sequence[Any],
        loss_fn: LossFunction,
        mean: Mean,
    ) -> list[Tensor]:
        """One backward pass of R through the masked model: each weight's flow, float64."""
        example = batches[0][0] if isinstance(batches[0], list | tuple) else batches[0]
        if not isinstance(example, Tensor) or not example.is_floating_point():
            raise ValueError("synflow replaces the batch by ones, so it does not work on token ids")
        ones = torch.ones_like(example[:1], dtype=torch.float64, device=weights[0].device)
        absolute = {
            name: tensor.detach().abs().to(torch.float64)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.is_floating_point()
        }
        places = {id(p): name for name, p in model.named_parameters()}
        chosen = [absolute[places[id(weight)]].requires_grad_() for weight in weights]
        with evaluating(model):
            logits = logits_in(functional_call(model, absolute, (ones,)))
        if not logits:
            raise ValueError("synflow finds no logits in what the model returns")
        flow = torch.stack([one.sum() for one in logits.values()]).sum()
        grads = torch.autograd.grad(flow, chosen, allow_unused=True)
        return [
            torch.zeros_like(w) if g is None else (g * w).detach()
            for g, w in zip(grads, chosen, strict=True)
        ]
