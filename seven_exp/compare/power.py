"""Power of a paired t test: what a number of seeds can resolve, given the spread that was seen."""

import math

from scipy.special import nctdtr, stdtrit

POWER = 0.8
"""Probability with which a difference should be found."""

MOST_SEEDS = 10_000
"""Larger numbers of seeds are not searched."""


def power(difference: float, spread: float, n: int, alpha: float) -> float:
    """The probability that a two-sided paired t test finds a difference (Cohen 1988, chapter 2).

    Args:
        difference: The true one.
        spread: Standard deviation of the differences of single seeds.
        n: Number of seeds, at least 2.
        alpha: Level of the test.
    """
    critical = float(stdtrit(n - 1, 1 - alpha / 2))
    shift = abs(difference) * math.sqrt(n) / spread
    below, wrong_side = (float(nctdtr(n - 1, shift, end)) for end in (critical, -critical))
    # Both are NaN where they underflow; the second does so near the null hypothesis already.
    found = 1.0 if math.isnan(below) else 1 - below
    return found if math.isnan(wrong_side) else found + wrong_side


def resolved(spread: float, n: int, alpha: float) -> float:
    """The smallest true difference that ``n`` seeds find with probability `POWER`."""
    low, high = 0.0, spread
    while power(high, spread, n, alpha) < POWER:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, spread, n, alpha) < POWER else (low, middle)
    return high


def seeds_to_resolve(difference: float, spread: float, alpha: float) -> int | None:
    """The smallest number of seeds that find a true difference with probability `POWER`.

    Returns:
        None if it is above `MOST_SEEDS`.
    """
    low, high = 1, 2
    while power(difference, spread, high, alpha) < POWER:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(difference, spread, middle, alpha) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high
