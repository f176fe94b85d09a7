"""Which weights compete, how many of them stay, and which: scopes, patterns and floors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress

import torch
from torch import Tensor, nn

from seven_exp.pruning.allocation import SCOPES, Measured, Pool, lamp_shares, measured_pools
from seven_exp.pruning.evidence import undecidable
from seven_exp.pruning.kernels import fused
from seven_exp.pruning.layers import Layer, transposed
from seven_exp.pruning.matrices import Stack
from seven_exp.pruning.patterns import Pattern, Units
from seven_exp.pruning.replicas import Group, average
from seven_exp.pruning.select import first_of_rows, kept_count, top_k_masks, top_units, unit_means
from seven_exp.pruning.shards import summed
from seven_exp.pruning.structure import blocks_of

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
        each_row: In a measured scope, whether weights compete within their output row.
        numbers: In a measured scope, the number of each layer's block, from `measured`.
        shards: Ranks that each hold some rows of every layer; None: this process holds all.
    """

    layers: Sequence[Layer]
    sparsity: float
    targets: Mapping[float, Sequence[int]]
    scope: str
    pattern: Pattern
    min_density: float
    each_row: bool = False
    numbers: Sequence[float] = ()
    shards: Group | None = None

    def pools(self, wanted: Wanted, without: Collection[int] = ()) -> list[Pool]:
        """The current pools, without the layers in ``without``."""
        pools = []
        for target, group in self.targets.items():
            members = [i for i in group if i not in without]
            pools += [
                pool._replace(layers=[members[i] for i in pool.layers])
                for pool in self._pools(1 - wanted(target), members)
            ]
        return pools

    def _pools(self, density: float, members: Sequence[int]) -> list[Pool]:
        """The pools of some layers, which count from 0."""
        scope, shapes = SCOPES[self.scope], [self._shape(i) for i in members]
        if isinstance(scope, Measured):
            numbers = [self.numbers[i] for i in members]
            pools = measured_pools(scope, density, shapes, numbers, each_row=self.each_row)
        else:
            pools = scope(density, shapes)
        if not isinstance(self.pattern, Units):
            return pools
        pools = [pool.together for pool in pools]  # units may span experts
        joined = self.pattern.spans_weights and not isinstance(scope, Measured)
        return self._joined(pools, members) if joined else pools

    def _joined(self, pools: Sequence[Pool], members: Sequence[int]) -> list[Pool]:
        """The pools, with those that share units made one."""
        joined: dict[int, Pool] = {}
        for pool in pools:
            family = self.families[members[pool.layers[0]]]
            if family in joined:
                layers = sorted(joined[family].layers + pool.layers)
                pool = pool._replace(layers=layers, kept=joined[family].kept + pool.kept)
            joined[family] = pool
        return list(joined.values())

    def kept(self, pool: Pool) -> int:
        """Number of weights that a pool keeps in total."""
        whole = pool.together
        return whole.kept * self._rows(pool) + whole.more

    def at_least(self, pool: Pool, number: int) -> Pool:
        """The pool, with so many kept weights or more; parts keep equally many."""
        if pool.parts > 1:
            return pool._replace(kept=max(pool.kept, -(-number // pool.parts)))
        kept, more = divmod(max(self.kept(pool), number), self._rows(pool))
        return pool._replace(kept=kept, more=more)

    def _rows(self, pool: Pool) -> int:
        """Number of rows that keep ``pool.kept`` each; 1 if weights compete beyond their row."""
        return self._shape(pool.layers[0])[0] if pool.each_row else 1

    @property
    def spans_blocks(self) -> bool:
        """Whether what a block keeps depends on the weights of others."""
        return self.scope in COMPETITIVE or isinstance(SCOPES[self.scope], Measured)

    @property
    def measures_inputs(self) -> bool:
        """Whether `measured` needs |W_ij| ||X_j|| instead of weights."""
        scope = SCOPES[self.scope]
        return isinstance(scope, Measured) and scope.of_inputs

    def measured(
        self,
        model: nn.Module,
        group: Group | None,
        scored: Callable[[int], Tensor] | None = None,
        without: Collection[int] = (),
    ) -> "Competition":
        """The same, with the numbers of a measured scope; unchanged for other scopes.

        Args:
            model: Holds the layers.
            group: Ranks, over which the numbers are averaged.
            scored: |W_ij| ||X_j|| of a layer, shaped like the weight, for scopes of inputs.
            without: Layers that get no weights.
        """
        scope = SCOPES[self.scope]
        if not isinstance(scope, Measured):
            return self
        block = {module: i for i, one in enumerate(blocks_of(model)) for module in one.modules()}
        members: dict[int | nn.Module, list[int]] = {}
        for i, layer in enumerate(self.layers):
            if i not in without:
                members.setdefault(block.get(layer.module, layer.module), []).append(i)
        numbers = torch.zeros(len(self.layers), dtype=torch.float64)
        for own in members.values():
            weights = [self.layers[i].weight.detach() for i in own]
            tensors = [scored(i) for i in own] if scored and scope.of_inputs else weights
            stacked = [self.layers[i].stacked for i in own]
            tensors = [t if s else t.flatten(1) for t, s in zip(tensors, stacked, strict=True)]
            numbers[own] = scope.measure(tensors)
        if group is not None:
            numbers = numbers.to(self.layers[0].weight.device)
            average([numbers], group)
        return replace(self, numbers=numbers.tolist())

    def of_units(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """The mean score of its unit for each weight; the scores themselves without units."""
        if self._units is None:
            return list(scores)
        means = unit_means([self._matrix(i, s) for i, s in enumerate(scores)], self._units)
        return [
            self._as_stored(i, mean).reshape(score.shape)
            for i, (mean, score) in enumerate(zip(means, scores, strict=True))
        ]

    def plainly_kept(self, wanted: Wanted) -> int | None:
        """Number of weights that stay if only their scores decide; None otherwise."""
        if type(self.pattern) is not Pattern or self.min_density or self.shards is not None:
            return None
        pools = self.pools(wanted)
        if len(pools) != 1 or pools[0].each_row or pools[0].by_share or pools[0].parts > 1:
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
        judges: Collection[int] = (),
    ) -> dict[int, Tensor] | None:
        """The masks that keep the highest ranks of a pool; None if all ranks are equal or broken.

        Args:
            pool: Some layers.
            ranks: Index of a layer -> tensor with its weight's shape, or with this rank's rows.
            candidates: Index of a layer -> bool tensor, same shape: the weights that may be kept.
            available: Number of candidates in the pool.
            judges: The layers whose ranks alone decide about units; empty: all layers.
        """
        scores = [self._matrix(i, ranks[i]) for i in pool.layers]
        places = [self._matrix(i, candidates[i]) for i in pool.layers]
        judging = [not judges or i in judges for i in pool.layers]
        heard = [list(compress(tensors, judging)) for tensors in (scores, places)]
        if undecidable(heard[0], heard[1], pool, available, self.shards):
            return None
        if pool.parts > 1:
            chosen = [self._of_parts(pool, scores[0], places[0])]
        else:
            chosen = self._chosen(pool, scores, places, available, judging)
        return {
            i: self._as_stored(i, mask).reshape(candidates[i].shape)
            for i, mask in zip(pool.layers, chosen, strict=True)
        }

    def _of_parts(self, pool: Pool, score: Tensor, candidates: Tensor) -> Tensor:
        """The best candidates of each part of a pool's only layer."""
        # Ranks hold whole experts, perhaps none.
        parts = pool.parts if self.shards is None else max(1, len(candidates))
        apart, masks = replace(self, shards=None), list[Tensor]()
        pairs = zip(score.chunk(parts), candidates.chunk(parts), strict=True)
        for n, (own, places) in enumerate(pairs):
            part = pool._replace(kept=pool.kept + (n < pool.more))
            masks += apart._chosen(part, [own], [places], apart._count([places]), [True])
        return torch.cat(masks)

    def _chosen(
        self,
        pool: Pool,
        scores: Sequence[Tensor],
        candidates: Sequence[Tensor],
        available: int,
        judging: Sequence[bool],
    ) -> list[Tensor]:
        """The best candidates of a pool, given one matrix for each of its layers."""
        pairs = list(zip(scores, candidates, strict=True))
        if pool.by_share:
            pairs = [(lamp_shares(score, places), places) for score, places in pairs]
        if pool.each_row:
            return [self._best_of_rows(pool, score, places) for score, places in pairs]
        scores = [score for score, _ in pairs]
        if self._units is not None:
            units = [self._units[i] for i in pool.layers]
            return top_units(scores, units, pool.kept, candidates, judging)
        kept = min(pool.kept, available)
        protected = [
            self._protected(score, places, self.layers[i].weight.numel())
            for i, (score, places) in zip(pool.layers, pairs, strict=True)
        ]
        if all(mask is None for mask in protected):
            return top_k_masks(scores, kept, candidates, group=self.shards)
        certain = [
            torch.zeros_like(places) if mask is None else mask
            for mask, places in zip(protected, candidates, strict=True)
        ]
        others = [places & ~mask for places, mask in zip(candidates, certain, strict=True)]
        room = min(max(0, kept - self._count(certain)), self._count(others))
        more = top_k_masks(scores, room, others, group=self.shards)
        return [mask | other for mask, other in zip(certain, more, strict=True)]

    def _best_of_rows(self, pool: Pool, score: Tensor, candidates: Tensor) -> Tensor:
        protected = self.pattern.protected(score, candidates)
        if protected is not None:
            score = score.masked_fill(protected, torch.inf)
        rows, alive = score.flatten(1), candidates.flatten(1)
        return first_of_rows(rows, pool.kept, alive, pool.more).view_as(candidates)

    def _protected(self, score: Tensor, candidates: Tensor, size: int) -> Tensor | None:
        """Weights of a layer that stay regardless of others: the pattern's and the floor's.

        ``size`` is the layer's number of weights on all ranks.
        """
        mask = self.pattern.protected(score, candidates)
        floor = kept_count(self.min_density, size)
        if mask is not None or floor == 0:
            return mask  # a pattern's own floor is never lower
        floor = min(floor, self._count([candidates]))
        (least,) = top_k_masks([score], floor, [candidates], group=self.shards)
        return least

    @cached_property
    def readers(self) -> set[int]:
        """The layers whose inputs are units of other layers."""
        return self.pattern.readers(self.layers)

    @cached_property
    def families(self) -> list[int]:
        """A number for each layer, equal for layers that share units, directly or not."""
        family, owner = list(range(len(self.layers))), dict[int, int]()
        for i, units in enumerate(self._units or ()):
            for unit in set(units.flatten().tolist()):
                one, other = family[i], family[owner.setdefault(unit, i)]
                if one != other:
                    family = [other if number == one else number for number in family]
        return family

    @cached_property
    def _units(self) -> list[Tensor] | None:
        return self.pattern.units(self.layers)

    @cached_property
    def _turned(self) -> set[int]:
        """The layers whose rows are inputs, if the scope or the pattern distinguishes rows."""
        of_rows = self.scope == "per_row" or self.each_row or self.pattern.counts_rows
        return {i for i, x in enumerate(self.layers) if of_rows and transposed(x)}

    def _shape(self, i: int) -> tuple[int, ...]:
        """(outputs, inputs, *kernel) of a layer, if the scope or the pattern distinguishes rows."""
        shape = self.layers[i].shape
        if i not in self._turned:
            return shape
        if isinstance(shape, Stack):
            return Stack.of(shape.copies, shape[1], shape[0] // shape.copies)
        return shape[1], shape[0]

    def _matrix(self, i: int, tensor: Tensor) -> Tensor:
        """A tensor with a layer's weight shape, viewed in the layer's `_shape`; or its rows."""
        if self.shards is not None:
            return tensor
        if i not in self._turned:
            return self.layers[i].matrix(tensor)
        turned = tensor.mT if self.layers[i].stacked else self.layers[i].matrix(tensor).T
        return turned.contiguous().view(self._shape(i))

    def _as_stored(self, i: int, matrix: Tensor) -> Tensor:
        """The inverse of `_matrix`, up to the shape."""
        if i not in self._turned:
            return matrix
        shape = self._shape(i)
        if isinstance(shape, Stack):
            matrix = matrix.reshape(shape.copies, -1, shape[1])
        return matrix.mT

    def _count(self, masks: Sequence[Tensor]) -> int:
        """Number of True elements, on all ranks."""
        count = torch.tensor(sum(fused.counts(masks)), dtype=torch.int64, device="cpu")
        return int(summed(count, self.shards, masks[0].device))
