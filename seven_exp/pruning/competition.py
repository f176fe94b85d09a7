"""Which weights compete, how many of them stay, and which: scopes, patterns and floors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from seven_exp.pruning.allocation import SCOPES, Pool
from seven_exp.pruning.choose import choose_masks
from seven_exp.pruning.evidence import undecidable
from seven_exp.pruning.layers import Layer, transposed
from seven_exp.pruning.patterns import Pattern

COMPETITIVE = ("global", "lamp")
"""Scopes in which the scores decide how much each layer keeps."""

Wanted = Callable[[float], float]
"""``wanted(target)``: the current sparsity for layers whose final sparsity is ``target``."""


@dataclass(frozen=True)
class Competition:
    """The layers of a pruner, and the rules by which their weights compete.

    Attributes:
        layers: The prunable weights.
        sparsity: Final fraction of zeros of the layers without a sparsity of their own.
        targets: Final sparsity -> indices of the layers that have it.
        scope: Name of the allocation.
        pattern: Which sets of weights may be pruned together.
        min_density: Fraction that each layer keeps at least.
    """

    layers: Sequence[Layer]
    sparsity: float
    targets: Mapping[float, Sequence[int]]
    scope: str
    pattern: Pattern
    min_density: float

    def pools(self, wanted: Wanted, without: Collection[int] = ()) -> list[Pool]:
        """The current pools, without the layers in ``without``."""
        pools = []
        for target, group in self.targets.items():
            members = [i for i in group if i not in without]
            shapes = [self._shape(i) for i in members]
            pools += [
                pool._replace(layers=[members[i] for i in pool.layers])
                for pool in SCOPES[self.scope](1 - wanted(target), shapes)
            ]
        return pools

    def kept(self, pool: Pool) -> int:
        """Number of weights that a pool keeps in total."""
        return pool.kept * (self._shape(pool.layers[0])[0] if pool.each_row else 1)

    def plainly_kept(self, wanted: Wanted) -> int | None:
        """Number of weights that stay if only their scores decide; None otherwise."""
        if self._units is not None or type(self.pattern) is not Pattern or self.min_density:
            return None
        pools = self.pools(wanted)
        if len(pools) != 1 or pools[0].each_row or pools[0].by_share:
            return None
        return pools[0].kept

    @property
    def floor_helps(self) -> bool:
        """Whether ``min_density`` could keep a layer from losing all its weights."""
        return self.scope in COMPETITIVE and self._units is None

    def best(
        self,
        pool: Pool,
        ranks: Mapping[int, Tensor],
        candidates: Mapping[int, Tensor],
        available: int,
    ) -> dict[int, Tensor] | None:
        """The masks that keep the highest ranks of a pool; None if all ranks are equal or broken.

        Args:
            pool: Some layers.
            ranks: Index of a layer -> tensor with its weight's shape.
            candidates: Index of a layer -> bool tensor, same shape: the weights that may be kept.
            available: Number of candidates in the pool.
        """
        scores = [self._matrix(i, ranks[i]) for i in pool.layers]
        places = [self._matrix(i, candidates[i]) for i in pool.layers]
        if undecidable(scores, places, pool, available):
            return None
        chosen = choose_masks(
            scores,
            places,
            pool,
            available=available,
            pattern=self.pattern,
            units=None if self._units is None else [self._units[i] for i in pool.layers],
            min_density=self.min_density,
        )
        return {
            i: (mask.T if i in self._turned else mask).reshape(candidates[i].shape)
            for i, mask in zip(pool.layers, chosen, strict=True)
        }

    @cached_property
    def _units(self) -> list[Tensor] | None:
        return self.pattern.units(self.layers)

    @cached_property
    def _turned(self) -> set[int]:
        """The layers whose rows are inputs, if the scope or the pattern distinguishes rows."""
        of_rows = self.scope == "per_row" or self.pattern.counts_rows
        return {i for i, x in enumerate(self.layers) if of_rows and transposed(x)}

    def _shape(self, i: int) -> tuple[int, ...]:
        """(outputs, inputs, *kernel) of a layer, if the scope or the pattern distinguishes rows."""
        shape = self.layers[i].shape
        return (shape[1], shape[0]) if i in self._turned else shape

    def _matrix(self, i: int, tensor: Tensor) -> Tensor:
        """A tensor with a layer's weight shape, viewed in the layer's `_shape`."""
        matrix = self.layers[i].matrix(tensor)
        return matrix.T.contiguous() if i in self._turned else matrix
