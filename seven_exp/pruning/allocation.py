"""Allocation: how a total sparsity is shared among the layers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from seven_exp.pruning.select import kept_count
from seven_exp.registry import Registry


class Pool(NamedTuple):
    """Layers whose weights compete with one another, and how many weights they keep in all."""

    layers: list[int]
    kept: int


Scope = Callable[[float, Sequence[int]], list[Pool]]
"""``scope(density, sizes)``: the pools, for layers of ``sizes`` weights each."""

SCOPES: Registry[Scope] = Registry("scope")


@SCOPES.register("global")
def one_pool(density: float, sizes: Sequence[int]) -> list[Pool]:
    """All weights compete: the total is exact, each layer's share follows from its scores."""
    return [Pool(list(range(len(sizes))), kept_count(density, sum(sizes)))]


@SCOPES.register("per_layer")
def per_layer(density: float, sizes: Sequence[int]) -> list[Pool]:
    """Every layer keeps the same fraction of its own weights."""
    return [Pool([i], kept_count(density, n)) for i, n in enumerate(sizes)]
