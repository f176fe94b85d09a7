"""Allocation: how a total sparsity is divided among the layers."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seven_exp.pruning.matrices import Stack
from seven_exp.pruning.select import kept_count
from seven_exp.registry import Registry

Shape = Sequence[int]
"""(outputs, inputs, *kernel) of a weight."""


class Pool(NamedTuple):
    """Layers whose weights compete with one another.

    Attributes:
        layers: Their indices, in ascending order.
        kept: Number of weights to keep in total; with ``each_row``, in every output row.
        each_row: Whether weights compete only within their output row.
        by_share: Whether weights compete by `lamp_shares` of their scores, so that layers of
            different scales are comparable.
    """

    layers: list[int]
    kept: int
    each_row: bool = False
    by_share: bool = False


Scope = Callable[[float, Sequence[Shape]], list[Pool]]
"""``scope(density, shapes)``: the pools for layers of these shapes."""

SCOPES: Registry[Scope] = Registry("scope")


@SCOPES.register("global")
def one_pool(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """All weights compete: the total is exact, and each layer's density follows from its scores."""
    return [Pool(list(range(len(shapes))), kept_count(density, sum(map(math.prod, shapes))))]


@SCOPES.register("per_layer")
def per_layer(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """Every layer keeps the same fraction of its own weights."""
    return [Pool([i], kept_count(density, math.prod(shape))) for i, shape in enumerate(shapes)]


@SCOPES.register("per_row")
def per_row(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """Every output row (a neuron's or a channel's weights) keeps the same number."""
    return [
        Pool([i], kept_count(density, math.prod(shape[1:])), each_row=True)
        for i, shape in enumerate(shapes)
    ]


@SCOPES.register("lamp")
def lamp(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """All weights compete by their LAMP ratio, which is computed from any score.

    The total is exact, and every layer's best weight has the same ratio, 1 (Lee et al., arXiv
    2010.07611, with any score in place of the magnitude).
    """
    return [pool._replace(by_share=True) for pool in one_pool(density, shapes)]


@SCOPES.register("erk")
def erdos_renyi_kernel(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """Larger layers are made sparser (Mocanu et al., 1707.04780; kernels: Evci et al., 1911.11134).

    A layer's density is ``min(1, eps * sum(shape) / prod(shape))``; eps is solved so that the total
    is right. Each expert in a stacked weight counts as one matrix. Each layer keeps
    ``int(density * n)``, so the total falls short by less than one weight per layer.
    """
    return [
        Pool([i], kept_count(share, math.prod(shape)))
        for i, (share, shape) in enumerate(zip(erk_densities(density, shapes), shapes, strict=True))
    ]


def erk_densities(density: float, shapes: Sequence[Shape]) -> list[float]:
    """Each layer's density; layers that would exceed 1 are dense and eps is solved for the rest."""
    sizes = [math.prod(shape) for shape in shapes]
    sides = [_sides(shape) for shape in shapes]
    wanted = density * sum(sizes)
    dense: set[int] = set()
    while len(dense) < len(shapes):
        sparse = [i for i in range(len(shapes)) if i not in dense]
        # A sparse matrix keeps eps * sum(shape) weights.
        eps = (wanted - sum(sizes[i] for i in dense)) / sum(sides[i] for i in sparse)
        full = {i for i in sparse if eps * sides[i] >= sizes[i]}
        if not full:
            break
        dense |= full
    return [
        1.0 if i in dense else eps * side / size
        for i, (side, size) in enumerate(zip(sides, sizes, strict=True))
    ]


def _sides(shape: Shape) -> int:
    """The sum of the dimensions; each matrix of a stack counts separately."""
    return sum(shape) + (shape.copies - 1) * shape[1] if isinstance(shape, Stack) else sum(shape)


def lamp_shares(score: Tensor, candidates: Tensor | None = None) -> Tensor:
    """s^2 / (sum of r^2 over the layer's r with r^2 >= s^2), in the order of the scores.

    (Lee et al., arXiv 2010.07611, eq. 1.)

    Args:
        score: Of any shape. If some scores are negative, the lowest one is subtracted from all.
            NaN and infinite scores get 0.
        candidates: Bool, same shape: the weights that compete. None: all of them.
    """
    broken = ~score.isfinite()
    score = score.masked_fill(broken, 0)
    lifted = (score - score.min().clamp(max=0)).masked_fill(broken, 0)
    if candidates is not None:
        lifted = lifted * candidates
    # Scaling by a power of two is exact and keeps squares from underflowing.
    lifted = torch.ldexp(lifted, -torch.frexp(lifted.max()).exponent.clamp(min=-100))
    squares, order = lifted.flatten().square().sort(descending=True, stable=True)
    shares = squares / squares.cumsum(0).clamp(min=1e-38)
    return shares.new_empty(shares.shape).scatter_(0, order, shares).view_as(score)
