"""The base of all tasks, and how a model is called on a batch."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from seven_exp.pruning.outputs import logits_of

Inputs = Tensor | Mapping[str, Tensor]
"""A tensor is the model's one argument; a mapping holds keyword arguments."""

Batch = tuple[Inputs, Tensor]
"""Inputs and targets; the first dimension of every tensor is the batch."""

Head = Literal["classification", "spans", "language_modelling"]
"""The head of a model."""


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's logits."""
    return logits_of(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))


class Task:
    """A loss for training, and metrics over a whole split, which are not means over its batches.

    Each batch returns `evidence`, one row per example; `metrics` gets that of all batches together.

    Attributes:
        metric: The headline metric, which ranks evaluations.
    """

    head: ClassVar[Head] = "classification"
    lower_is_better: ClassVar[bool] = False

    metric: str
    departures: tuple[str, ...] = ()
    """How the metrics depart from a published protocol."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, a scalar.

        Args:
            logits: float32.
            targets: As the data set returns them.
        """
        raise NotImplementedError

    def weight(self, targets: Tensor) -> int:
        """Number of losses that `loss` averages over."""
        return len(targets)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        """Number of correct predictions, for the progress bar; None if the task has none."""
        return None

    def evidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the metrics need from a batch, one row per example, on any device."""
        raise NotImplementedError

    def metrics(self, evidence: Tensor, loss: float) -> dict[str, float]:
        """Metrics of a split, including the headline.

        Args:
            evidence: Of all batches, on the CPU.
            loss: Mean over the split, weighted by `weight`.
        """
        raise NotImplementedError

    def better(self, value: float, than: float) -> bool:
        """Whether one headline value is better than another."""
        return value < than if self.lower_is_better else value > than
