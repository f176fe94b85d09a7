"""Patterns: which sets of weights may be pruned together."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from seven_exp.pruning.matrices import Layer, Stack, transposed, unwrap
from seven_exp.pruning.select import first_of_rows
from seven_exp.pruning.structure import blocks_of


class Pattern:
    """Unstructured: any set of weights may be pruned."""

    counts_rows: ClassVar[bool] = False
    """Whether it distinguishes a weight's outputs from its inputs."""

    empties_layers: ClassVar[bool] = False
    """Whether layers are meant to lose all their weights."""

    def __str__(self) -> str:
        """The text that `parse_pattern` reads."""
        return "unstructured"

    def of(self, model: nn.Module) -> "Pattern":
        """The pattern for a model."""
        return self

    def check(self, sparsity: float, scope: str) -> None:
        """Raise ValueError, with the reason, if the pattern does not fit the settings."""

    def misfits(self, layers: Sequence[Layer]) -> dict[str, str]:
        """Name -> reason, as a sentence, for each layer that the pattern does not fit."""
        reasons = ((layer.name, self._misfit(layer)) for layer in layers)
        return {name: reason for name, reason in reasons if reason}

    def _misfit(self, layer: Layer) -> str | None:
        return None

    def protected(self, score: Tensor, alive: Tensor) -> Tensor | None:
        """Bool tensor of a layer's weights that must stay, given their scores; None: none must.

        Args:
            score: Has the weight's shape.
            alive: Bool, same shape.
        """
        return None

    def units(self, layers: Sequence[Layer]) -> list[Tensor] | None:
        """Number the units, that is, the sets of weights that are pruned together.

        Returns:
            For each layer an int64 tensor of unit numbers that broadcasts to its shape. Numbers are
            equal within a unit and distinct across the model. None: each weight is its own unit.
        """
        return None

    def readers(self, layers: Sequence[Layer]) -> set[int]:
        """The layers whose inputs are units of other layers; empty if no unit spans layers."""
        return set()


@dataclass(frozen=True)
class NOfM(Pattern):
    """At most ``n`` of ``m`` neighbours along the inputs stay, as sparse tensor cores require.

    The ``n`` best of each group are protected, so a gradual schedule reaches the pattern at its end
    (Mishra et al., arXiv 2104.08378, describe 2:4).
    """

    n: int
    m: int

    counts_rows: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def check(self, sparsity: float, scope: str) -> None:
        """The pattern determines the sparsity, equally in every row."""
        implied = 1 - self.n / self.m
        if sparsity and abs(sparsity - implied) > 1e-9:
            raise ValueError(
                f"pattern {self.n}:{self.m} means a sparsity of {implied:.12g}, not {sparsity}"
            )
        if scope not in ("global", "per_layer", "per_row"):
            raise ValueError(
                f"pattern {self.n}:{self.m} prunes all layers alike: "
                f"scope '{scope}' does not fit it; choose global, per_layer or per_row"
            )

    def _misfit(self, layer: Layer) -> str | None:
        """Groups must divide the inputs."""
        inputs = layer.shape[0 if transposed(layer) else 1]
        if inputs % self.m == 0:
            return None
        return (
            f"pattern {self.n}:{self.m} does not fit {layer.name}, whose {inputs} inputs are not a "
            f"multiple of {self.m}"
        )

    def protected(self, score: Tensor, alive: Tensor) -> Tensor:
        """The ``n`` best of the kept weights in each group."""
        groups = self._grouped(score)
        best = first_of_rows(groups, self.n, self._grouped(alive))
        back = best.view(score.movedim(1, -1).shape).movedim(-1, 1)
        return back.contiguous()

    def _grouped(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).reshape(-1, self.m)


class Units(Pattern):
    """Whole units stay or are pruned."""

    counts_rows: ClassVar[bool] = True

    spans_weights: ClassVar[bool] = False
    """Whether a unit has parts in several weights."""

    name: ClassVar[str]

    def __str__(self) -> str:
        return self.name

    def check(self, sparsity: float, scope: str) -> None:
        """The scope must let whole units compete."""
        if self.spans_weights and scope not in ("global", "per_layer"):
            raise ValueError(
                f"pattern {self} spans several weights: scope '{scope}' does not fit it; "
                "choose global or per_layer"
            )
        if scope == "per_row":
            raise ValueError(
                f"pattern {self} removes whole units: scope 'per_row' ranks weights within "
                "rows; choose global or per_layer"
            )

    def units(self, layers: Sequence[Layer]) -> list[Tensor] | None:
        """Numbered across all layers."""
        numbered, start = [], 0
        for layer in layers:
            own = self._own(layer)
            numbered.append(own + start)
            start += int(own.max()) + 1
        return numbered

    def readers(self, layers: Sequence[Layer]) -> set[int]:
        """The layers with a unit number for each input."""
        numbered = self.units(layers) if self.spans_weights else None
        pairs = enumerate(zip(layers, numbered or (), strict=False))
        return {i for i, (x, unit) in pairs if unit.shape[0 if transposed(x) else 1] > 1}

    def _own(self, layer: Layer) -> Tensor:
        raise NotImplementedError


class Rows(Units):
    """Whole output rows: a neuron's or a channel's weights."""

    name = "rows"

    def _own(self, layer: Layer) -> Tensor:
        shape = layer.shape
        return torch.arange(shape[0], device="cpu").view(-1, *[1] * (len(shape) - 1))


@dataclass(frozen=True)
class Blocks(Units):
    """Blocks of ``rows`` outputs by ``columns`` inputs, kernels included."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    def _misfit(self, layer: Layer) -> str | None:
        """Blocks must tile the weight; in stacked experts, each expert's matrix."""
        rows, inputs = layer.shape[:2]
        own = rows // layer.shape.copies if isinstance(layer.shape, Stack) else rows
        if own % self.rows == inputs % self.columns == 0:
            return None
        return f"pattern {self.rows}x{self.columns} does not tile {layer.name} of {own}x{inputs}"

    def _own(self, layer: Layer) -> Tensor:
        out, inputs, *kernel = layer.shape
        row = torch.arange(out, device="cpu") // self.rows
        column = torch.arange(inputs, device="cpu") // self.columns
        grid = row[:, None] * (inputs // self.columns) + column
        return grid.view(out, inputs, *[1] * len(kernel))


class Heads(Units):
    """Whole attention heads: their rows of the projections and their columns of the output."""

    spans_weights: ClassVar[bool] = True

    name = "heads"

    def misfits(self, layers: Sequence[Layer]) -> dict[str, str]:
        """Only attention has heads."""
        owners = self._owners(layers)
        return {
            layer.name: f"pattern heads does not fit {layer.name}, which is not an "
            "nn.MultiheadAttention's"
            for layer in layers
            if layer.module not in owners
        }

    def units(self, layers: Sequence[Layer]) -> list[Tensor] | None:
        """One number per head, in all weights of its attention."""
        owners = self._owners(layers)
        attentions = dict.fromkeys(owners.values())
        starts = itertools.accumulate((a.num_heads for a in attentions), initial=0)
        first = dict(zip(attentions, starts, strict=False))
        numbered = []
        for layer in layers:
            attention = owners[layer.module]
            head = (
                torch.arange(attention.embed_dim, device="cpu") // attention.head_dim
                + first[attention]
            )
            if layer.module is attention.out_proj:
                numbered.append(head.view(1, -1))
            else:
                # Queries, keys and values have one stack of rows each; or there is just one stack.
                stacks = layer.weight.shape[0] // attention.embed_dim
                numbered.append(head.repeat(stacks).view(-1, 1))
        return numbered

    def _owners(self, layers: Sequence[Layer]) -> dict[nn.Module, nn.MultiheadAttention]:
        """Each module of attention -> its attention, in the order of the layers."""
        modules = (layer.module for layer in layers)
        found = [m for m in modules if isinstance(m, nn.MultiheadAttention)]
        return {part: one for one in found for part in (one, one.out_proj)}


Slice = tuple[str, int, Sequence[int]]
"""Name of a weight, a dimension of it, and indices in this dimension."""


class Group(NamedTuple):
    """A channel, neuron or head, with everything that is removed together with it.

    Attributes:
        rows: The weights that make it. All of them must be prunable.
        others: What else belongs to it, such as the columns that read it.
    """

    rows: Sequence[Slice]
    others: Sequence[Slice] = ()


@dataclass(frozen=True, eq=False)
class Coupled(Units):
    """Channels, neurons and heads across layers: what a residual sum or a product ties together.

    A weight belongs to the unit of its row. If its rows are in no unit, it belongs to the unit of
    its column, as in the second layer of a Transformer's MLP. A unit's score is the sum of its
    weights' scores, divided by their number, because the budget counts weights. (Fang et al.,
    arXiv 2301.12900, also reduce the scores of a group to one number.)

    Attributes:
        groups: Found by tracing the model; see `seven_exp.shrink.coupled_pattern`.
    """

    groups: Sequence[Group] = ()

    counts_rows: ClassVar[bool] = False

    spans_weights: ClassVar[bool] = True

    name = "coupled"

    def check(self, sparsity: float, scope: str) -> None:
        """The groups of the model must be known."""
        if not self.groups:
            raise ValueError(
                "pattern coupled needs the model's units: pass "
                "pattern=seven_exp.shrink.coupled_pattern(model, example_inputs)"
            )
        super().check(sparsity, scope)

    def misfits(self, layers: Sequence[Layer]) -> dict[str, str]:
        """Layers none of whose dimensions is divided into units."""
        places = self._places(layers)
        return {
            layer.name: f"pattern coupled does not fit {layer.name}: some of its channels reach an "
            "output, a norm over all channels, a layer of fixed size or one that stays dense"
            for layer in layers
            if layer.name not in places
        }

    def units(self, layers: Sequence[Layer]) -> list[Tensor] | None:
        """The number of its group for each row or column of each layer."""
        places = self._places(layers)
        numbered = []
        for layer in layers:
            dim, numbers = places[layer.name]
            shape = [1] * layer.weight.dim()
            shape[dim] = -1
            numbered.append(numbers.view(shape))
        return numbered

    def _places(self, layers: Sequence[Layer]) -> dict[str, tuple[int, Tensor]]:
        """Name of a layer -> a dimension that is divided into units, and their numbers."""
        sizes = {layer.name: layer.weight.shape for layer in layers}
        usable = dict(enumerate(self.groups))
        while True:
            rows = _divided(sizes, {i: group.rows for i, group in usable.items()})
            left = {
                i: group
                for i, group in usable.items()
                if all(name in rows for name, _, _ in group.rows)
            }
            if len(left) == len(usable):
                break
            usable = left
        return _divided(sizes, {i: group.others for i, group in usable.items()}) | rows


@dataclass(frozen=True, eq=False)
class Depth(Units):
    """Whole blocks, such as the layers of a decoder.

    Attributes:
        blocks: Those of the model, from `of`.
    """

    blocks: Sequence[nn.Module] = ()

    counts_rows: ClassVar[bool] = False

    empties_layers: ClassVar[bool] = True

    spans_weights: ClassVar[bool] = True

    name = "depth"

    def of(self, model: nn.Module) -> "Depth":
        """The same with the blocks of a model."""
        return Depth(blocks_of(unwrap(model)))

    def check(self, sparsity: float, scope: str) -> None:
        """Blocks compete with one another."""
        if scope != "global":
            raise ValueError(
                f"pattern depth removes whole blocks: scope '{scope}' does not fit it; choose "
                "global"
            )

    def misfits(self, layers: Sequence[Layer]) -> dict[str, str]:
        """Layers outside all blocks."""
        numbers = self._numbers()
        return {
            layer.name: f"pattern depth does not fit {layer.name}, which is in no block"
            for layer in layers
            if layer.module not in numbers
        }

    def units(self, layers: Sequence[Layer]) -> list[Tensor] | None:
        """The number of its block for each layer."""
        numbers = self._numbers()
        return [
            torch.full([1] * len(layer.shape), numbers[layer.module], device="cpu")
            for layer in layers
        ]

    def _numbers(self) -> dict[nn.Module, int]:
        return {module: i for i, block in enumerate(self.blocks) for module in block.modules()}


def _divided(
    sizes: Mapping[str, Sequence[int]], slices: Mapping[int, Sequence[Slice]]
) -> dict[str, tuple[int, Tensor]]:
    """The weights that have a dimension of which each index has a number, with these numbers."""
    found: dict[tuple[str, int], Tensor] = {}
    for number, own in slices.items():
        for name, dim, indices in own:
            if name in sizes:
                if (name, dim) not in found:
                    found[name, dim] = torch.full((sizes[name][dim],), -1, device="cpu")
                found[name, dim][list(indices)] = number
    return {name: (dim, at) for (name, dim), at in found.items() if bool((at >= 0).all())}


def parse_pattern(text: str) -> Pattern:
    """The pattern for a text.

    Args:
        text: "unstructured", "rows", "heads", "coupled", "depth", "N:M" such as "2:4", or "RxC",
            such as "4x4".

    Raises:
        ValueError: None of these.
    """
    text = str(text)
    named: dict[str, type[Pattern]] = {"unstructured": Pattern}
    named |= {kind.name: kind for kind in (Rows, Heads, Coupled, Depth)}
    if text in named:
        return named[text]()
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = int(found[1]), int(found[2])
        if 0 < n < m:
            return NOfM(n, m)
    if (found := re.fullmatch(r"(\d+)x(\d+)", text)) and int(found[1]) * int(found[2]) > 0:
        return Blocks(int(found[1]), int(found[2]))
    raise ValueError(
        f"unknown pattern '{text}': choose unstructured, N:M such as 2:4, RxC such as 4x4, rows, "
        "heads, coupled or depth"
    )
