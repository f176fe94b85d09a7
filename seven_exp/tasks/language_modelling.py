"""The next token: cross-entropy per token; perplexity."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from seven_exp.tasks.base import Task

IGNORED = -100
"""A target that is ignored: padding."""


@dataclass(frozen=True)
class LanguageModelling(Task):
    """Logits (n, length, vocabulary), targets int64 (n, length): the input tokens, or `IGNORED`.

    Attributes:
        metric: The headline metric.
        departures: How the perplexity's text and blocks depart from the published protocol.
    """

    head = "language_modelling"
    lower_is_better = True

    metric: str = "perplexity"
    departures: tuple[str, ...] = ()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over all tokens that have a predecessor."""
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED
        )

    def weight(self, targets: Tensor) -> int:
        """Number of predicted tokens."""
        return int((targets[:, 1:] != IGNORED).sum())

    def evidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Nothing: the loss is sufficient."""
        return targets.new_empty((len(targets), 0))

    def metrics(self, evidence: Tensor, loss: float) -> dict[str, float]:
        """Perplexity: exp of the total loss over the number of tokens."""
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf, "loss": loss}
