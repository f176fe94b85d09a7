"""Coupling: which rows and columns of a model's weights can only be removed together.

NaN marks channels. A layer returns NaN in some channels; NaN passes through activations, norms,
sums, products, concatenations, reshapes and attention, and shows in the inputs of the layers
that read these channels. A residual sum couples what it adds, a product couples a gate with what it
scales, the softmax couples the dimensions of a head, and a layer norm couples everything that it
normalises. So the units are the connected components of "this input depends on that output".
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from seven_exp.pruning.inputs import evaluating
from seven_exp.pruning.matrices import unwrap
from seven_exp.pruning.patterns import Coupled, Group
from seven_exp.shrink.probing import Probe, channelwise, mapped, resizable
from seven_exp.shrink.sizes import by_input, is_conv1d, is_depthwise, rows_of
from seven_exp.shrink.verify import Inputs

Port = tuple[str, str]
"""Name of a layer, and what of it is meant: "rows", "columns", or "channels" of a layer that has
parameters for each channel."""

Hits = dict[str, Tensor]
"""Name of a layer -> bool (inputs,): the inputs that a mark has reached."""

Marks = Callable[[str, int], Tensor | None]
"""``marks(name, n)``: which of a layer's n outputs are marked, bool (n,); None: none."""


@dataclass(frozen=True, eq=False)
class Unit:
    """What can only be removed together.

    Attributes:
        places: Port -> its indices, in ascending order.
    """

    places: Mapping[Port, tuple[int, ...]]

    @property
    def ports(self) -> tuple[tuple[Port, int], ...]:
        """The ports with the number of indices in each: equal for units of one kind."""
        return tuple((port, len(indices)) for port, indices in self.places.items())

    def of(self, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and indices of the ports of one kind."""
        for (name, side), indices in self.places.items():
            if side == kind:
                yield name, indices


def coupled(model: nn.Module, example_inputs: Inputs) -> list[Unit]:
    """Find a model's units: channels, neurons and heads with everything that depends on them.

    Args:
        model: Not changed. It runs in evaluation mode.
        example_inputs: Inputs of one forward pass; a few examples are enough.

    Returns:
        In the order in which the model runs its layers. Each has rows and columns, and is not all
        that a layer has. What reaches the model's outputs, or a layer that can't be resized, is in
        no unit.
    """
    with evaluating(model):
        probe = Probe.of(model, example_inputs)
        return _units(probe)


def coupled_pattern(model: nn.Module, example_inputs: Inputs) -> Coupled:
    """The pattern that prunes a model's units; pass it to `create_pruner` as ``pattern``.

    Args:
        model: See `coupled`.
        example_inputs: See `coupled`.

    Raises:
        ValueError: The model has no units.
    """
    model = unwrap(model)
    units = coupled(model, example_inputs)
    if not units:
        raise ValueError(no_units(model))
    modules = dict(model.named_modules())
    turned = {name: int(is_conv1d(module)) for name, module in modules.items()}
    groups = []
    for unit in units:
        rows = [(f"{name}.weight", turned[name], at) for name, at in unit.of("rows")]
        others = [(f"{name}.weight", 1 - turned[name], at) for name, at in unit.of("columns")]
        others += [
            (f"{name}.weight", 0, at)
            for name, at in unit.of("channels")
            if is_depthwise(modules[name])
        ]
        groups.append(Group(rows, others))
    return Coupled(groups)


def no_units(model: nn.Module) -> str:
    """Why nothing can be removed from a model."""
    return (
        f"{type(model).__name__} has no units that can be removed: all of its channels reach an "
        "output, a norm over all channels, or a layer of fixed size"
    )


def _units(probe: Probe) -> list[Unit]:
    makers = [name for name in probe.outputs if resizable(probe.modules[name])]
    nodes = _Nodes(probe, makers)
    rough, sharp = _codes(probe, makers), {}
    for name in makers:
        hits, out = _marked(probe, partial(_only, name))
        reached = {reader: hit for reader, hit in hits.items() if bool(hit.any())}
        size = nodes.sizes[name, "rows"]
        if out or not all(map(nodes.knows, reached)):
            nodes.fix(name, "rows", _all(size))
        for reader in filter(nodes.knows, reached):
            code = rough[reader]
            if bool((code.all(2).any(1) & reached[reader]).any()):
                # Queries outnumber keys if they share them: layers of one size have equal numbers.
                if size not in sharp:
                    same = [other for other in makers if nodes.sizes[other, "rows"] == size]
                    sharp[size] = _codes(probe, same)
                code = sharp[size][reader]
            nodes.tie(name, reader, reached[reader], code)
    hits, _ = _marked(probe, lambda other, n: None if other in makers else _all(n), inputs=True)
    for reader in filter(nodes.knows, hits):
        nodes.fix(reader, nodes.side(reader), hits[reader])
    return nodes.units()


class _Nodes:
    """Numbers all rows, columns and channels; one more number stands for what can't be removed."""

    def __init__(self, probe: Probe, makers: Sequence[str]) -> None:
        self.sizes: dict[Port, int] = {}
        for name in makers:
            self.sizes[name, "rows"] = rows_of(probe.modules[name])
            self.sizes[name, "columns"] = len(by_input(probe.modules[name]))
        for name, module in probe.modules.items():
            if channelwise(module):
                self.sizes[name, "channels"] = rows_of(module)
        starts = itertools.accumulate(self.sizes.values(), initial=0)
        self._starts = dict(zip(self.sizes, starts, strict=False))
        self._fixed = sum(self.sizes.values())
        self._edges: list[Tensor] = []

    def knows(self, reader: str) -> bool:
        return (reader, self.side(reader)) in self.sizes

    def side(self, reader: str) -> str:
        return "columns" if (reader, "columns") in self.sizes else "channels"

    def fix(self, name: str, side: str, which: Tensor) -> None:
        """Some indices of a port (bool) can't be removed."""
        nodes = which.nonzero().squeeze(1) + self._starts[name, side]
        self._edges.append(torch.stack([nodes, torch.full_like(nodes, self._fixed)]))

    def tie(self, name: str, reader: str, reached: Tensor, code: Tensor) -> None:
        """What a layer reads depends on the rows of another one.

        Args:
            name: The layer with the rows.
            reader: The layer that reads them.
            reached: Bool (inputs,), the inputs that depend on any row.
            code: Bool (inputs, bits, 2), see `_codes`.
        """
        rows, inputs = self._starts[name, "rows"], self._starts[reader, self.side(reader)]
        places = reached.nonzero().squeeze(1)
        number = (code[places, :, 1] << torch.arange(code.shape[1])).sum(1)
        known = (code[places, :, 0] ^ code[places, :, 1]).all(1)
        known &= number < self.sizes[name, "rows"]
        self._edges.append(torch.stack([places[known] + inputs, number[known] + rows]))
        places = places[~known]
        kinds, kind_of = torch.unique(code[places], dim=0, return_inverse=True)
        numbers = torch.arange(self.sizes[name, "rows"])
        bits = (numbers[:, None] >> torch.arange(code.shape[1])) & 1
        for i, kind in enumerate(kinds):
            fitting = kind.gather(1, bits.T).all(0).nonzero().squeeze(1) + rows
            own = places[kind_of == i] + inputs
            # A star has the same component as all pairs.
            self._edges.append(torch.stack([own, fitting[:1].expand(len(own))]))
            self._edges.append(torch.stack([fitting, own[:1].expand(len(fitting))]))

    def units(self) -> list[Unit]:
        """The connected components that are units."""
        ones, twos = torch.cat([torch.empty(2, 0, dtype=torch.long), *self._edges], 1).numpy()
        edges = coo_matrix((np.ones(len(ones), bool), (ones, twos)), (self._fixed + 1,) * 2)
        _, labels = connected_components(edges, directed=False)
        places: dict[int, dict[Port, list[int]]] = {}
        for port, count in self.sizes.items():
            start = self._starts[port]
            for i, label in enumerate(labels[start : start + count].tolist()):
                places.setdefault(label, {}).setdefault(port, []).append(i)
        places.pop(int(labels[self._fixed]), None)
        return [
            Unit({port: tuple(indices) for port, indices in own.items()})
            for own in places.values()
            if {"rows", "columns"} <= {side for _, side in own}
            and all(len(indices) < self.sizes[port] for port, indices in own.items())
        ]


def _codes(probe: Probe, makers: Sequence[str]) -> dict[str, Tensor]:
    """What the marks reveal about the numbers of the rows that each input depends on.

    Returns:
        Name of a reader -> bool (inputs, bits, 2): whether an input depends on a row of some layer
        whose number has a 0, or a 1, at this bit. If all these rows have the same number, as in
        residual sums, that determines it; otherwise the numbers that fit include the right ones.
    """
    most = max((rows_of(probe.modules[name]) for name in makers), default=1)
    bits: list[list[Hits]] = []
    for bit in range(max(1, (most - 1).bit_length())):
        bits.append([])
        for value in (0, 1):

            def marks(name: str, n: int, bit: int = bit, value: int = value) -> Tensor | None:
                return (torch.arange(n) >> bit) & 1 == value if name in makers else None

            bits[-1].append(_marked(probe, marks)[0])
    readers = bits[0][0]
    return {
        name: torch.stack([torch.stack([hit[name] for hit in pair], 1) for pair in bits], 1)
        for name in readers
    }


def _marked(probe: Probe, marks: Marks, *, inputs: bool = False) -> tuple[Hits, bool]:
    """Which inputs of layers depend on marked outputs, and whether the model's outputs do.

    Args:
        probe: The model.
        marks: Which outputs are NaN.
        inputs: Whether the model's own inputs are NaN, too.
    """
    hits: Hits = {}

    def read(name: str, x: Tensor) -> None:
        reached = x.isnan().reshape(-1, x.shape[-1]).any(0).cpu()
        hits[name] = hits[name] | reached if name in hits else reached

    def replace(name: str, y: Tensor) -> Tensor:
        which = marks(name, y.shape[-1])
        return y if which is None else y.masked_fill(which.to(y.device), torch.nan)

    given = mapped(probe.inputs, lambda x: x * torch.nan) if inputs else None
    made = probe.run(read, replace, given)
    return hits, any(bool(t.isnan().any()) for t in made if t.is_floating_point())


def _only(name: str, other: str, n: int) -> Tensor | None:
    return _all(n) if other == name else None


def _all(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)
