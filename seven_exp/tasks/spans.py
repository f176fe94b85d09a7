"""An answer as a span of a text: SQuAD v1.1's exact match and F1."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seven_exp.tasks.base import Task

LONGEST = 30
"""Tokens of the longest answer considered (Devlin et al., arXiv 1810.04805)."""


@dataclass(frozen=True)
class Spans(Task):
    """Logits (n, length, 2) for start and end; targets int64 (n, 5).

    A row of the targets: first and last token of the answer, first and last token of the context,
    and the number of the window. A long context is split into windows; the best span over all the
    windows of a question is its answer.

    Attributes:
        windows: For each window its question, and each token's position in the context as a range
            of characters; windows of all splits that are evaluated.
        contexts: One per question.
        answers: All right answers, one list per question.
        metric: The headline, "f1" or "exact_match".
    """

    head = "spans"

    windows: Sequence[tuple[int, Sequence[tuple[int, int]]]]
    contexts: Sequence[str]
    answers: Sequence[Sequence[str]]
    metric: str = "f1"

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of start and end over the tokens."""
        return functional.cross_entropy(logits, targets[:, :2])

    def evidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Each window's best span, float64 (n, 4): window, first and last token, score."""
        places = torch.arange(logits.shape[1], device=logits.device)
        first, last = targets[:, 2, None], targets[:, 3, None]
        outside = (places < first) | (places > last)
        start, end = logits.masked_fill(outside[..., None], -torch.inf).unbind(-1)
        apart = places[None, :] - places[:, None]
        scores = (start[:, :, None] + end[:, None, :]).masked_fill(
            (apart < 0) | (apart >= LONGEST), -torch.inf
        )
        best, place = scores.flatten(1).max(1)
        begin, finish = place // len(places), place % len(places)
        return torch.stack([x.double() for x in (targets[:, 4], begin, finish, best)], 1)

    def metrics(self, evidence: Tensor, loss: float) -> dict[str, float]:
        """F1 and exact match as fractions, means over the split's questions; and the loss."""
        best: dict[int, tuple[float, str]] = {}
        for window, begin, finish, score in evidence.tolist():
            question, places = self.windows[int(window)]
            if score > best.setdefault(question, (-torch.inf, ""))[0]:
                text = self.contexts[question][places[int(begin)][0] : places[int(finish)][1]]
                best[question] = score, text
        f1 = exact = 0.0
        for question, (_, given) in best.items():
            truths = self.answers[question]
            f1 += max(answer_f1(given, truth) for truth in truths)
            exact += max(float(normal_form(given) == normal_form(truth)) for truth in truths)
        n = len(best)
        return {"f1": f1 / n, "exact_match": exact / n, "loss": loss}


def normal_form(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces (Rajpurkar et al., 1606.05250)."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def answer_f1(given: str, truth: str) -> float:
    """F1 of the answer's words, as bags, against the right ones (same source)."""
    ours, theirs = normal_form(given).split(), normal_form(truth).split()
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0
