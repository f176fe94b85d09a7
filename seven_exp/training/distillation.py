"""Distillation: the dense start as a teacher of the model that is pruned."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seven_exp.training.loop import Compute


@dataclass(frozen=True)
class Distillation:
    """(1 - weight) CE + weight T^2 KL(teacher at T || student at T) (Hinton et al., 1503.02531).

    Attributes:
        teacher: Dense, on the device, in evaluation mode.
        weight: Of the teacher's part, in [0, 1].
        temperature: T; logits are divided by it.
    """

    teacher: nn.Module
    weight: float
    temperature: float

    def loss(
        self, compute: Compute, model: nn.Module, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `Compute.loss`: a scalar, and the student's logits of shape (batch, classes)."""
        cross_entropy, logits = compute.loss(model, inputs, targets)
        with torch.no_grad(), compute.autocast():
            taught = self.teacher(inputs).float()
        divergence = functional.kl_div(
            (logits / self.temperature).log_softmax(1),
            (taught / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        teaching = self.temperature**2 * divergence
        return (1 - self.weight) * cross_entropy + self.weight * teaching, logits
