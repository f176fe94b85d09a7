"""One class of several: cross-entropy; accuracy, and metrics by name."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seven_exp.tasks.base import Task
from seven_exp.tasks.metrics import METRICS


@dataclass(frozen=True)
class Classification(Task):
    """Logits (n, classes), targets int64 (n,), or probabilities (n, classes) in training.

    Attributes:
        metric: The headline.
        extra: Names of `METRICS` besides accuracy.
        label_smoothing: Probability that is spread over all classes (Szegedy et al., arXiv
            1512.00567, section 7).
    """

    metric: str = "accuracy"
    extra: tuple[str, ...] = ()
    label_smoothing: float = 0.0

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Number of correct classes; of probabilities, the largest counts."""
        return (logits.argmax(1) == (targets if targets.ndim == 1 else targets.argmax(1))).sum()

    def evidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The predicted class and the true one, (n, 2)."""
        return torch.stack([logits.argmax(1), targets], 1)

    def metrics(self, evidence: Tensor, loss: float) -> dict[str, float]:
        """Accuracy (a fraction), loss, and the extra metrics."""
        chosen, targets = evidence.unbind(1)
        figures = {"accuracy": (chosen == targets).sum().item() / len(targets), "loss": loss}
        return figures | {name: METRICS[name](chosen, targets) for name in self.extra}
