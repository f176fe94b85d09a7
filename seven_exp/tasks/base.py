"""What a task is, and how a model is called on a batch."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from seven_exp.pruning.outputs import logits_of

Inputs = Tensor | Mapping[str, Tensor]
"""A tensor is the model's one argument; a mapping holds keyword arguments."""

Batch = tuple[Inputs, Tensor]
"""Inputs and targets, the first dimension of every tensor being the batch."""

Head = Literal["classification", "spans", "language_modelling"]
"""What a model ends in."""


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's logits."""
    return logits_of(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))


class Task:
    """A loss for training, and metrics over a whole split, never means over its batches.

    A batch leaves `evidence`, a row an example; `metrics` sees that of all batches together.

    Attributes:
        metric: The headline, by which evaluations are told better from worse.
    """

    head: ClassVar[Head] = "classification"
    lower_is_better: ClassVar[bool] = False

    metric: str

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, a scalar.

        Args:
            logits: float32.
            targets: As the data set gives them.
        """
        raise NotImplementedError

    def weight(self, targets: Tensor) -> int:
        """How many losses `loss` is the mean of."""
        return len(targets)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        """How many targets are met, for training's progress; None where that means nothing."""
        return None

    def evidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the metrics need of a batch, a row an example, on any device."""
        raise NotImplementedError

    def metrics(self, evidence: Tensor, loss: float) -> dict[str, float]:
        """Figures of a split, the headline among them.

        Args:
            evidence: Of all batches, on the CPU.
            loss: Mean over the split, weighted by `weight`.
        """
        raise NotImplementedError

    def better(self, value: float, than: float) -> bool:
        """Whether one headline beats another."""
        return value < than if self.lower_is_better else value > than
