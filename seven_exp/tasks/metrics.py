"""Metrics of classification besides accuracy, by name."""

from collections.abc import Callable

from torch import Tensor

from seven_exp.registry import Registry

METRICS: Registry[Callable[[Tensor, Tensor], float]] = Registry("metric")
"""Functions ``(predicted, targets)`` of the class indices of a whole split, int64 (n,)."""


@METRICS.register("f1")
def f1(predicted: Tensor, targets: Tensor) -> float:
    """F1 of class 1; 0 if it is neither predicted nor present."""
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predicted, zero_division=0))


@METRICS.register("matthews")
def matthews(predicted: Tensor, targets: Tensor) -> float:
    """Matthews' correlation."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(targets, predicted))
