"""Patterns: which sets of weights may go together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seven_exp.pruning.layers import Layer
from seven_exp.pruning.select import first_of_rows


class Pattern:
    """Unstructured: any set of weights may go."""

    def check(self, layers: Sequence[Layer], sparsity: float, scope: str) -> None:
        """Raise ValueError, with the reason, where the pattern does not fit."""

    def protected(self, score: Tensor, alive: Tensor) -> Tensor | None:
        """Bool tensor of weights of a layer that must stay, given its scores; None: nothing must.

        Args:
            score: Shaped like the weight.
            alive: Bool, likewise.
        """
        return None

    def units(self, layers: Sequence[Layer]) -> list[Tensor] | None:
        """Which weights go together.

        Returns:
            For each layer int64 numbers that broadcast to its shape, equal within a unit and
            distinct between units of the whole model; None where each weight is its own unit.
        """
        return None


@dataclass(frozen=True)
class NOfM(Pattern):
    """At most ``n`` of ``m`` neighbours along the input dimension stay, as sparse tensor cores ask.

    The ``n`` best of each group are protected, so a gradual schedule comes to the pattern by its
    end (Mishra et al., arXiv 2104.08378, describe 2:4).
    """

    n: int
    m: int

    def check(self, layers: Sequence[Layer], sparsity: float, scope: str) -> None:
        """The sparsity follows from the pattern; groups must fit into the inputs."""
        implied = 1 - self.n / self.m
        if sparsity and abs(sparsity - implied) > 1e-9:
            raise ValueError(
                f"pattern {self.n}:{self.m} means a sparsity of {implied:.12g}, not {sparsity}"
            )
        if scope not in ("global", "per_layer"):
            raise ValueError(
                f"pattern {self.n}:{self.m} prunes all layers alike: "
                f"scope '{scope}' does not fit it; choose global or per_layer"
            )
        for layer in layers:
            if layer.weight.shape[1] % self.m:
                raise ValueError(
                    f"pattern {self.n}:{self.m} does not fit {layer.name}: its "
                    f"{layer.weight.shape[1]} inputs are not a multiple of {self.m}; exclude it"
                )

    def protected(self, score: Tensor, alive: Tensor) -> Tensor:
        """The ``n`` best living weights of each group."""
        groups = self._grouped(score)
        best = first_of_rows(groups, self.n, self._grouped(alive))
        back = best.view(score.movedim(1, -1).shape).movedim(-1, 1)
        return back.contiguous()

    def _grouped(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).reshape(-1, self.m)


class _Units(Pattern):
    """Whole units stay or go."""

    name = "units"

    def check(self, layers: Sequence[Layer], sparsity: float, scope: str) -> None:
        """Units of a layer must be able to compete."""
        if scope == "per_row":
            raise ValueError(
                f"pattern {self.name} removes whole units: scope 'per_row' ranks weights within "
                "rows; choose global or per_layer"
            )

    def units(self, layers: Sequence[Layer]) -> list[Tensor] | None:
        """Numbered through all layers."""
        numbered, start = [], 0
        for layer in layers:
            own = self._own(layer)
            numbered.append(own + start)
            start += int(own.max()) + 1
        return numbered

    def _own(self, layer: Layer) -> Tensor:
        raise NotImplementedError


class Rows(_Units):
    """Whole output rows: a neuron's or a channel's weights."""

    name = "rows"

    def _own(self, layer: Layer) -> Tensor:
        shape = layer.weight.shape
        return torch.arange(shape[0], device="cpu").view(-1, *[1] * (len(shape) - 1))


@dataclass(frozen=True)
class Blocks(_Units):
    """Blocks of ``rows`` outputs by ``columns`` inputs, kernels included."""

    rows: int
    columns: int

    name = "blocks"

    def check(self, layers: Sequence[Layer], sparsity: float, scope: str) -> None:
        """Blocks must tile every weight."""
        super().check(layers, sparsity, scope)
        for layer in layers:
            out, inputs = layer.weight.shape[:2]
            if out % self.rows or inputs % self.columns:
                raise ValueError(
                    f"pattern {self.rows}x{self.columns} does not tile {layer.name} of "
                    f"{out}x{inputs}; exclude it"
                )

    def _own(self, layer: Layer) -> Tensor:
        out, inputs, *kernel = layer.weight.shape
        row = torch.arange(out, device="cpu") // self.rows
        column = torch.arange(inputs, device="cpu") // self.columns
        grid = row[:, None] * (inputs // self.columns) + column
        return grid.view(out, inputs, *[1] * len(kernel))


class Heads(_Units):
    """Whole attention heads: their rows of the projections and their columns of the output."""

    name = "heads"

    def check(self, layers: Sequence[Layer], sparsity: float, scope: str) -> None:
        """Only attention has heads, and a head spans several weights."""
        if scope != "global":
            raise ValueError(
                f"pattern heads spans several weights: scope '{scope}' does not fit it; "
                "choose global"
            )
        self.units(layers)

    def units(self, layers: Sequence[Layer]) -> list[Tensor] | None:
        """One number a head, in all weights of its attention."""
        first: dict[nn.MultiheadAttention, int] = {}
        start = 0
        for layer in layers:
            if isinstance(layer.module, nn.MultiheadAttention) and layer.module not in first:
                first[layer.module] = start
                start += layer.module.num_heads
        owner: dict[nn.Module, nn.MultiheadAttention] = {a: a for a in first}
        owner |= {a.out_proj: a for a in first}
        numbered = []
        for layer in layers:
            attention = owner.get(layer.module)
            if attention is None:
                raise ValueError(
                    f"pattern heads does not fit {layer.name}, which is not an "
                    "nn.MultiheadAttention's: exclude it"
                )
            head = (
                torch.arange(attention.embed_dim, device="cpu") // attention.head_dim
                + first[attention]
            )
            if layer.module is attention.out_proj:
                numbered.append(head.view(1, -1))
            else:
                # One stack of rows each for queries, keys and values, or just one of them.
                stacks = layer.weight.shape[0] // attention.embed_dim
                numbered.append(head.repeat(stacks).view(-1, 1))
        return numbered


def parse_pattern(text: str) -> Pattern:
    """The pattern that a word stands for.

    Args:
        text: "unstructured", "rows", "heads", "N:M" such as "2:4", or "RxC" such as "4x4".

    Raises:
        ValueError: None of these.
    """
    plain: dict[str, Pattern] = {"unstructured": Pattern(), "rows": Rows(), "heads": Heads()}
    if text in plain:
        return plain[text]
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = int(found[1]), int(found[2])
        if 0 < n < m:
            return NOfM(n, m)
    if (found := re.fullmatch(r"(\d+)x(\d+)", text)) and int(found[1]) * int(found[2]) > 0:
        return Blocks(int(found[1]), int(found[2]))
    raise ValueError(
        f"unknown pattern '{text}': choose unstructured, N:M such as 2:4, RxC such as 4x4, rows "
        "or heads"
    )
