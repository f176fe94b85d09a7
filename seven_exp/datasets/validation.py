"""The validation split: held out from the training data, unless the data set has its own."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from seven_exp.datasets.batches import Data, Divisible

log = logging.getLogger(__name__)

USUAL = 0.1
"""Fraction of the training examples, if the config gives none and there is no official split."""


def with_validation(data: Data, fraction: float | None) -> Data:
    """The data with the validation split that ``fraction`` asks for.

    It is the same in all runs, whatever their seeds: a dense start that they share has seen none
    of it. It has the training data's proportions of classes; of a text's windows it is the end.

    Args:
        data: As its loader returns it.
        fraction: Part of the training examples, in (0, 1); 0: no validation split; None: the
            official split, or else a tenth of the training examples, if they can be divided.

    Raises:
        ValueError: The training examples can't be divided.
    """
    if fraction == 0:
        return replace(data, validation=None)
    if fraction is None and data.validation is not None:
        return data
    if not isinstance(data.train, Divisible) or data.train.examples < 2:
        reason = "the training batches of this data set can't be divided"
        if fraction is not None:
            raise ValueError(
                f"dataset.validation is {fraction}: {reason}; choose 0, give them a method "
                "'divided', or let the data set return a validation split"
            )
        log.warning("dataset.validation: %s, so there is no validation split", reason)
        return data
    n = data.train.examples
    count = held_out(n, fraction)
    strata = data.train.strata
    chosen = torch.arange(n - count, n) if strata is None else stratified(strata, count)
    train, validation = data.train.divided(chosen)
    return replace(data, train=train, validation=validation)


def with_limit(data: Data, limit: int | float | None) -> Data:
    """The data with a part of the training examples, the same in all runs.

    It has the proportions of the classes; of a text's windows it is the beginning.

    Args:
        data: With its validation split.
        limit: Number of examples, or a fraction of them in (0, 1]; None: all.

    Raises:
        ValueError: The training examples can't be divided, or there are fewer.
    """
    if limit is None:
        return data
    if not isinstance(data.train, Divisible):
        raise ValueError(
            f"dataset.limit is {limit}: the training batches of this data set can't be divided; "
            "choose null, or give them a method 'divided'"
        )
    n, strata = data.train.examples, data.train.strata
    count = limited(n, limit)
    if count > n:
        raise ValueError(
            f"dataset.limit is {limit}: there are {n} training examples; the nearest valid choice "
            f"is {n}"
        )
    left_out = torch.ones(n, dtype=torch.bool)
    left_out[torch.arange(count) if strata is None else stratified(strata, count)] = False
    return replace(data, train=data.train.divided(left_out.nonzero()[:, 0])[0])


def limited(examples: int, limit: int | float | None) -> int:
    """How many training examples a limit asks for: a number, or a fraction of them."""
    if limit is None:
        return examples
    return limit if isinstance(limit, int) else max(1, round(limit * examples))


def held_out(examples: int, fraction: float | None) -> int:
    """How many of the training examples a fraction holds out: at least one, and not all."""
    if fraction == 0 or examples < 2:
        return 0
    return min(max(1, round((USUAL if fraction is None else fraction) * examples)), examples - 1)


def stratified(strata: Tensor, count: int, seed: int = 0) -> Tensor:
    """Numbers of ``count`` examples in which each class has its share, ascending.

    Each class is shuffled, and its n members are placed 1/n apart on [0, 1], from a random place
    below 1/n on. Those with the lowest places are chosen.

    Args:
        strata: The class of each example, int64 (n,).
        count: How many to choose.
        seed: Seed of the shuffle.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(strata), generator=generator)
    _, kinds, sizes = strata[order].unique(  # type: ignore[no-untyped-call]
        return_inverse=True, return_counts=True
    )
    by_class = kinds.argsort(stable=True)
    rank = torch.empty_like(kinds)
    rank[by_class] = torch.arange(len(kinds)) - (sizes.cumsum(0) - sizes)[kinds[by_class]]
    first = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    places = (rank + first[kinds]) / sizes[kinds]
    return order[places.argsort(stable=True)[:count]].sort().values
