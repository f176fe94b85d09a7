"""A number: squared error; Pearson's and Spearman's correlation."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seven_exp.tasks.base import Task


@dataclass(frozen=True)
class Regression(Task):
    """Logits (n, 1), targets float32 (n,).

    Attributes:
        metric: The headline, "pearson" or "spearman".
    """

    metric: str = "pearson"

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(logits.squeeze(1), targets)

    def evidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The predicted number and the true one, (n, 2)."""
        return torch.stack([logits.squeeze(1), targets], 1)

    def metrics(self, evidence: Tensor, loss: float) -> dict[str, float]:
        """Both correlations and the loss; constant predictions have a correlation of 0."""
        from scipy.stats import pearsonr, spearmanr

        given, targets = evidence.double().unbind(1)
        if given.min() == given.max() or targets.min() == targets.max():
            return {"pearson": 0.0, "spearman": 0.0, "loss": loss}
        return {
            "pearson": float(pearsonr(given, targets).statistic),
            "spearman": float(spearmanr(given, targets).statistic),
            "loss": loss,
        }
