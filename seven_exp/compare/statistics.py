"""Means over seeds, intervals, differences, and the correction for many comparisons."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.special import stdtr, stdtrit

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: Over ``n`` values.
        half: Half the 95% interval's width; None for a single value.
        n: Number of values.
    """

    mean: float
    half: float | None
    n: int

    def ends(self, low: float = -math.inf, high: float = math.inf) -> tuple[float, float] | None:
        """The interval's ends, clipped at a metric's bounds; None without an interval."""
        if self.half is None:
            return None
        return max(low, self.mean - self.half), min(high, self.mean + self.half)


@dataclass(frozen=True)
class Difference:
    """A mean difference to the baseline.

    Attributes:
        estimate: Of this minus baseline; ``n`` counts pairs, or without pairs the seeds of the
            smaller arm.
        p: Of the two-sided test; None for one value or zero spread: a test needs a spread, and on a
            small test split a few seeds may have none by chance.
        test: "paired" (Student's t over the common seeds) or "unpaired" (Welch's).
        error: Standard error of the mean, as wide as the interval; None without a test.
        freedom: Degrees of freedom of ``error``.
        spread: Standard deviation of the differences of single seeds; None without pairs or spread.
    """

    estimate: Estimate
    p: float | None
    test: Literal["paired", "unpaired"] = "paired"
    error: float | None = None
    freedom: float = 0.0
    spread: float | None = None


Differ = Callable[[Mapping[int, float], Mapping[int, float], float], Difference | None]
"""``differ(ours, baseline, floor)``: compares two methods."""


def estimate(values: Sequence[float], floor: float = 0.0) -> Estimate:
    """Mean and two-sided 95% Student t interval.

    Seeds share one test set, and on ``n`` examples an accuracy changes in steps of ``1 / n``. A few
    seeds often agree within one step, and their zero spread then means "less than one example", not
    "certain". So the narrowest interval is one step each way. The interval does not cover other
    test examples: the sampling of examples is common to all methods compared here, and cancels out
    of their differences.

    Args:
        values: At least one.
        floor: The smallest half width: one step of the metric, from `metrics.resolution`.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, max(floor, _quantile(n - 1) * _standard_error(values, mean)), n)


def paired_difference(
    ours: Mapping[int, float], baseline: Mapping[int, float], floor: float = 0.0
) -> Difference | None:
    """The difference seed by seed: effects that both arms of a seed share cancel out.

    Args:
        ours: Seed -> value.
        baseline: Seed -> value.
        floor: The smallest half width, as in `estimate`.

    Returns:
        None if there is no common seed.
    """
    differences = [ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())]
    if not differences:
        return None
    found = estimate(differences, floor)
    if found.n == 1:
        return Difference(found, None)
    error = _standard_error(differences, found.mean)
    tested = _tested(found, error, found.n - 1, _residue(ours, baseline), "paired")
    return tested if tested.error is None else replace(tested, spread=error * math.sqrt(found.n))


def unpaired_difference(
    ours: Mapping[int, float], baseline: Mapping[int, float], floor: float = 0.0
) -> Difference | None:
    """The difference of two means whose seeds have nothing in common (Welch 1947).

    Args:
        ours: Seed -> value, at least one.
        baseline: Seed -> value, at least one.
        floor: The smallest half width, as in `estimate`.
    """
    arms = [list(values.values()) for values in (ours, baseline)]
    means = [math.fsum(values) / len(values) for values in arms]
    mean, n = means[0] - means[1], min(map(len, arms))
    if n == 1:
        return Difference(Estimate(mean, None, 1), None, "unpaired")
    squares = [_standard_error(v, m) ** 2 for v, m in zip(arms, means, strict=True)]
    total = sum(squares)
    residue = _residue(ours, baseline)
    if total <= residue**2:
        return _tested(Estimate(mean, floor, n), 0.0, n - 1, residue, "unpaired")
    freedom = total**2 / sum(s * s / (len(v) - 1) for s, v in zip(squares, arms, strict=True))
    error = math.sqrt(total)
    found = Estimate(mean, max(floor, _quantile(freedom) * error), n)
    return _tested(found, error, freedom, residue, "unpaired")


def equivalence(difference: Difference, margin: float) -> float | None:
    """Two one-sided t tests against ``-margin`` and ``margin`` (Schuirmann 1987).

    The test whose bound is nearer to the mean has the larger p, which counts.

    Args:
        difference: Between two methods.
        margin: The largest difference without importance, above 0.

    Returns:
        The p value; None if the difference has no test.
    """
    if difference.error is None:
        return None
    distance = margin - abs(difference.estimate.mean)
    return float(stdtr(difference.freedom, -distance / difference.error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values, in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _tested(
    found: Estimate,
    error: float,
    freedom: float,
    residue: float,
    test: Literal["paired", "unpaired"],
) -> Difference:
    """The difference with its p value, from a standard error as wide as the interval."""
    if error <= residue:
        return Difference(found, 1.0 if abs(found.mean) <= residue else None, test)
    assert found.half is not None
    widened = max(error, found.half / _quantile(freedom))
    p = 2 * float(stdtr(freedom, -abs(found.mean) / widened))
    return Difference(found, p, test, widened, freedom)


def _residue(*arms: Mapping[int, float]) -> float:
    """Rounding error of equal differences, as large as that of the numbers themselves."""
    return 1e-12 * max(abs(value) for arm in arms for value in arm.values())


def _quantile(freedom: float) -> float:
    return float(stdtrit(freedom, 0.975))


def _standard_error(values: Sequence[float], mean: float) -> float:
    n = len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
