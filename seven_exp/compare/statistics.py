"""Means over seeds, intervals, paired differences, and the correction for many comparisons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: Over ``n`` values.
        half: Half the 95% interval's width; None where one value gives none.
        n: How many.
    """

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean difference to the baseline over the seeds that both have.

    Attributes:
        estimate: Of this minus baseline.
        p: Of the two-sided paired t test; None where there is one pair, or all differ alike: a
            test needs a spread, and on a small test split a few seeds may show none by chance.
    """

    estimate: Estimate
    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and two-sided 95% Student t interval.

    Args:
        values: At least one.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, float(stdtrit(n - 1, 0.975)) * _standard_error(values, mean), n)


def paired_difference(
    ours: Mapping[int, float], baseline: Mapping[int, float]
) -> Difference | None:
    """The difference seed by seed: what is common to both arms of a seed cancels out.

    Args:
        ours: Seed -> value.
        baseline: Seed -> value.

    Returns:
        None where no seed is common.
    """
    differences = [ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())]
    if not differences:
        return None
    found = estimate(differences)
    if found.n == 1:
        return Difference(found, None)
    error = _standard_error(differences, found.mean)
    # Equal differences of rounded numbers leave a residue, as large as the numbers' own rounding.
    residue = 1e-12 * max(map(abs, (*ours.values(), *baseline.values())))
    if error <= residue:
        return Difference(found, 1.0 if abs(found.mean) <= residue else None)
    return Difference(found, 2 * float(stdtr(found.n - 1, -abs(found.mean) / error)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values, in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _standard_error(values: Sequence[float], mean: float) -> float:
    n = len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
