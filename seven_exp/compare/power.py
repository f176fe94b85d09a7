"""Power of a paired t test: what a number of seeds can resolve, given the spread that was seen."""

import math
from functools import cache
from typing import Any

import numpy as np
from scipy.special import gammainc, gammaincinv, nctdtr, ndtr, stdtrit

POWER = 0.8
"""Probability with which a difference should be found."""

MOST_SEEDS = 10_000
"""Larger numbers of seeds are not searched."""


def power(difference: float, spread: float, n: int, alpha: float, floor: float = 0.0) -> float:
    """The probability that a two-sided paired t test finds a difference.

    Without a floor it is that of the noncentral t distribution (Cohen 1988, chapter 2).

    Args:
        difference: The true one.
        spread: Standard deviation of the differences of single seeds.
        n: Number of seeds, at least 2.
        alpha: Level of the test.
        floor: The smallest half width of a 95% interval, which the test shares: see
            `statistics.estimate`.
    """
    critical = float(stdtrit(n - 1, 1 - alpha / 2))
    error = spread / math.sqrt(n)
    below, wrong_side = (
        float(nctdtr(n - 1, abs(difference) / error, end)) for end in (critical, -critical)
    )
    # Both are NaN where they underflow; the second does so near the null hypothesis already.
    found = 1.0 if math.isnan(below) else 1 - below
    found += 0.0 if math.isnan(wrong_side) else wrong_side
    return found - _lost_to(floor, difference, error, n, critical) if floor else found


@cache
def _rule() -> tuple[Any, Any]:
    """Places and weights of Gauss and Legendre's rule for integrals from 0 to 1."""
    places, weights = np.polynomial.legendre.leggauss(200)
    return (places + 1) / 2, weights / 2


def _lost_to(floor: float, difference: float, error: float, n: int, critical: float) -> float:
    """How often seeds agree within the floor and would be significant without it."""
    least = floor / float(stdtrit(n - 1, 0.975))
    rare = float(gammainc((n - 1) / 2, (n - 1) / 2 * (least / error) ** 2))

    def found(shown: Any) -> Any:
        needed = critical * np.asarray(shown)
        return ndtr((difference - needed) / error) + ndtr((-difference - needed) / error)

    places, weights = _rule()
    # The standard errors below the floor that n seeds may show.
    shown = error * np.sqrt(2 * gammaincinv((n - 1) / 2, rare * places) / (n - 1))
    return rare * float(weights @ (found(shown) - found(least)))


def resolved(spread: float, n: int, alpha: float, floor: float = 0.0) -> float:
    """The smallest true difference that ``n`` seeds find with probability `POWER`."""
    low, high = 0.0, spread
    while power(high, spread, n, alpha, floor) < POWER:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        enough = power(middle, spread, n, alpha, floor) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def seeds_to_resolve(
    difference: float, spread: float, alpha: float, floor: float = 0.0
) -> int | None:
    """The smallest number of seeds that find a true difference with probability `POWER`.

    Returns:
        None if it is above `MOST_SEEDS`.
    """
    low, high = 1, 2
    while power(difference, spread, high, alpha, floor) < POWER:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(difference, spread, middle, alpha, floor) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high
