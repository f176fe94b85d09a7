"""One class of several: cross-entropy; accuracy, F1, Matthews' correlation."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from seven_exp.tasks.base import Task


@dataclass(frozen=True)
class Classification(Task):
    """Logits (n, classes), targets int64 (n,), or probabilities (n, classes) in training.

    Attributes:
        metric: The headline.
        extra: Metrics besides accuracy: "f1" (of class 1) and "matthews".
        label_smoothing: Probability that is spread over all classes (Szegedy et al., arXiv
            1512.00567, section 7).
    """

    metric: str = "accuracy"
    extra: tuple[Literal["f1", "matthews"], ...] = ()
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
        if self.extra:
            from sklearn.metrics import f1_score, matthews_corrcoef

            if "f1" in self.extra:
                figures["f1"] = float(f1_score(targets, chosen, zero_division=0))
            if "matthews" in self.extra:
                figures["matthews"] = float(matthews_corrcoef(targets, chosen))
        return figures
