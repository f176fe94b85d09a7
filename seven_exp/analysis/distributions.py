"""How a quantity is distributed over a set of weights, and how far two sets lie apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distribution:
    """Of a quantity over some of the weights.

    Attributes:
        counts: One histogram a layer.
        sums: The quantity's sum over each layer's members.
    """

    counts: list[list[int]]
    sums: list[float]

    @property
    def total(self) -> list[int]:
        """The histogram of all layers together."""
        return [sum(column) for column in zip(*self.counts, strict=True)]

    @property
    def means(self) -> list[float | None]:
        """Mean of each layer; None where it has no member."""
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
    """The distribution of ``values`` over ``members``, those left out whose value is NaN.

    Args:
        values: One tensor a layer, any shape, not negative.
        members: Bool tensors of the same shapes.
        limit: Upper end of the histogram; what lies above is counted in the last bin.
        bins: Bins of equal width from 0 to ``limit``.
    """
    counts, sums = [], []
    for value, member in zip(values, members, strict=True):
        chosen = value[member & ~value.isnan()].float()
        places = (chosen * (bins / limit)).long().clamp_(max=bins - 1)
        counts.append(torch.bincount(places, minlength=bins).tolist())
        sums.append(chosen.sum().item())
    return Distribution(counts, sums)


def separation(higher: Sequence[int], lower: Sequence[int]) -> float | None:
    """Chance that a member of one set lies above a member of another; ties count half.

    It is Mann and Whitney's U over the number of pairs, or the area under the ROC curve: 0.5 where
    the two can't be told apart. From histograms it is exact but for pairs within a bin.

    Args:
        higher: Histogram of the one.
        lower: Histogram of the other, with the same bins.

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
    """The same among pairs of one layer: what differs between layers has no part in it."""
    won = pairs = 0.0
    for one, other in zip(higher.counts, lower.counts, strict=True):
        found = separation(one, other)
        if found is not None:
            weight = sum(one) * sum(other)
            won, pairs = won + weight * found, pairs + weight
    return won / pairs if pairs else None
