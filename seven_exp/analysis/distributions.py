"""Distributions of a quantity over sets of weights, and the distance of two such sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distribution:
    """The distribution of a quantity over some of the weights.

    Attributes:
        counts: One histogram per layer.
        sums: The quantity's sum over each layer's members.
    """

    counts: list[list[int]]
    sums: list[float]

    @property
    def total(self) -> list[int]:
        """The histogram over all layers."""
        return [sum(column) for column in zip(*self.counts, strict=True)]

    @property
    def means(self) -> list[float | None]:
        """Mean of each layer; None if it has no member."""
        return [
            s / n if (n := sum(counts)) else None
            for counts, s in zip(self.counts, self.sums, strict=True)
        ]

    @property
    def mean(self) -> float | None:
        """Mean of all members; None if there are none."""
        n = sum(map(sum, self.counts))
        return sum(self.sums) / n if n else None


def distribution(
    values: Sequence[Tensor], members: Sequence[Tensor], limit: float, bins: int
) -> Distribution:
    """The distribution of ``values`` over ``members``, without NaN values.

    Args:
        values: One tensor per layer, any shape, not negative.
        members: Bool tensors of the same shapes.
        limit: Upper end of the histogram; larger values are counted in the last bin.
        bins: Number of equal bins from 0 to ``limit``.
    """
    counts, sums = [], []
    for value, member in zip(values, members, strict=True):
        chosen = value[member & ~value.isnan()].float()
        places = (chosen * (bins / limit)).long().clamp_(max=bins - 1)
        counts.append(torch.bincount(places, minlength=bins).tolist())
        sums.append(chosen.sum().item())
    return Distribution(counts, sums)


def separation(higher: Sequence[int], lower: Sequence[int]) -> float | None:
    """Probability that a member of one set exceeds a member of another; ties count half.

    It is Mann and Whitney's U over the number of pairs, or the area under the ROC curve: 0.5 if the
    sets can't be distinguished. From histograms it is exact except for pairs within a bin.

    Args:
        higher: Histogram of the first set.
        lower: Histogram of the second set, with the same bins.

    Returns:
        A number in [0, 1]; None if a set is empty.
    """
    pairs = sum(higher) * sum(lower)
    if not pairs:
        return None
    below = accumulate(lower, initial=0)
    won = sum(n * (b + tied / 2) for n, b, tied in zip(higher, below, lower, strict=False))
    return won / pairs


def separation_in_layers(higher: Distribution, lower: Distribution) -> float | None:
    """The same among pairs within a layer, so that differences between layers do not count."""
    won = pairs = 0.0
    for one, other in zip(higher.counts, lower.counts, strict=True):
        found = separation(one, other)
        if found is not None:
            weight = sum(one) * sum(other)
            won, pairs = won + weight * found, pairs + weight
    return won / pairs if pairs else None
