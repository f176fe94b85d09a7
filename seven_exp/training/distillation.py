"""Distillation: the dense start teaches the pruned model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seven_exp.tasks import Inputs, forward
from seven_exp.training.compute import Compute


@dataclass(frozen=True)
class Distillation:
    """(1 - weight) CE + weight T^2 KL(teacher at T || student at T) + hidden MSE(hidden states).

    The logits' term is that of Hinton et al. (arXiv 1503.02531). The hidden states' term is the
    mean squared distance between the outputs of each block, averaged over blocks, as in TinyBERT
    (Jiao et al., arXiv 1909.10351, eq. 8) with equal widths.

    Attributes:
        teacher: Dense, on the device, in evaluation mode.
        weight: Weight of the teacher's logits, in [0, 1].
        temperature: T; divides the logits.
        hidden: Weight of the hidden states' term.

    Raises:
        ValueError: Hidden states are requested but the model has no equal blocks.
    """

    teacher: nn.Module
    weight: float
    temperature: float
    hidden: float = 0.0

    def __post_init__(self) -> None:
        if self.hidden:
            blocks(self.teacher)

    def loss(
        self, compute: Compute, model: nn.Module, inputs: Inputs, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Like `Compute.loss`: a scalar, and the student's logits of shape (batch, classes)."""
        with outputs_of(blocks(model) if self.hidden else []) as shown:
            cross_entropy, logits = compute.loss(model, inputs, targets)
        with (
            torch.no_grad(),
            compute.autocast(),
            outputs_of(blocks(self.teacher) if self.hidden else []) as exemplary,
        ):
            taught = forward(self.teacher, inputs).float()
        divergence = functional.kl_div(
            (logits / self.temperature).log_softmax(1),
            (taught / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        teaching = self.temperature**2 * divergence
        loss = (1 - self.weight) * cross_entropy + self.weight * teaching
        if self.hidden:
            distances = [
                functional.mse_loss(own.float(), other.float())
                for own, other in zip(shown, exemplary, strict=True)
            ]
            loss = loss + self.hidden * torch.stack(distances).mean()
        return loss, logits


def blocks(model: nn.Module) -> list[nn.Module]:
    """A Transformer's blocks: the longest run of siblings of one class that hold other modules.

    Raises:
        ValueError: There are no such siblings, or only one.
    """
    longest: list[nn.Module] = []
    for parent in model.modules():
        run: list[nn.Module] = []
        for before, child in pairwise([None, *parent.children()]):
            if child is None or not list(child.children()):
                run = []
            elif type(child) is type(before):
                run = [*run, child]
            else:
                run = [child]
            longest = max(longest, run, key=len)
    if len(longest) < 2:
        raise ValueError(
            "trainer.distill_hidden compares the outputs of equal blocks, and the model has none: "
            "choose 0"
        )
    return longest


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of modules within the context, in the order of their calls."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
