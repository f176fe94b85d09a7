"""Properties of metrics by name: which direction is better, their bounds and resolution."""

import math

SMALLER_IS_BETTER = (
    *("loss", "perplexity", "error", "error_rate", "mae", "mse", "rmse", "wer", "cer", "ece"),
    *("brier", "nll"),
)
"""Metrics; each may have a suffix for a further split, such as loss_mismatched."""

_SHARES = ("accuracy", "exact_match")
"""Fractions of the test examples."""

COSTS = {
    "sparsity": "sparsity",
    "kept": "kept parameters",
    "zeros": "zeros of all parameters",
    "flops": "operations of a forward pass (FLOPs)",
    "seconds": "seconds of training",
}
"""Attributes of a record that can be an axis -> their titles."""

MEASURED = {
    "latency": "latency of one example, ms",
    "throughput": "examples per second in a batch",
    "bytes": "size of the weights, bytes",
}
"""Quantities of a record's measurements -> their titles."""

_BOUNDS = {
    **dict.fromkeys((*COSTS, *MEASURED, "mae", "mse", "rmse", "wer", "cer"), (0.0, math.inf)),
    **dict.fromkeys((*_SHARES, "f1", "error_rate", "sparsity", "zeros"), (0.0, 1.0)),
    **dict.fromkeys(("matthews", "pearson", "spearman"), (-1.0, 1.0)),
    "perplexity": (1.0, math.inf),
}


def smaller_is_better(metric: str) -> bool:
    """Whether lower values are better."""
    return _is(metric, *SMALLER_IS_BETTER)


def in_percent(metric: str) -> bool:
    """Whether a metric is printed as a percentage."""
    return "accuracy" in metric


def print_scale(metric: str) -> int:
    """What a value is multiplied by in print."""
    return 100 if in_percent(metric) else 1


def is_share(metric: str) -> bool:
    """Whether it is a fraction of examples, so that one example is the smallest step."""
    return _is(metric, *_SHARES)


def bounds(metric: str) -> tuple[float, float]:
    """The lowest and the highest value of a metric or an axis; infinite without a bound."""
    name, _, _ = metric.partition(".")  # without the variant that a measurement is of
    return next((ends for n, ends in _BOUNDS.items() if _is(name, n)), (-math.inf, math.inf))


def resolution(metric: str, examples: int | None) -> float | None:
    """The smallest step of a metric on a test set.

    Args:
        metric: Its name.
        examples: Size of the test set; None if unknown.

    Returns:
        One over the number of examples for a fraction of them, 0 for a metric without a smallest
        step, and None if the size of the split is unknown; records hold only the test split's size.
    """
    if not is_share(metric):
        return 0.0
    return 1 / examples if examples and metric in _SHARES else None


def _is(metric: str, *names: str) -> bool:
    return any(metric == name or metric.startswith(f"{name}_") for name in names)
