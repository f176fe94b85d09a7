"""Shrinking: removes the units of a model that have no effect; the outputs stay the same.

If a unit's output is constant, its effect moves to the biases of the next layers. A unit that no
layer reads any more is removed, with its rows, columns and channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from seven_exp.pruning.matrices import unwrap
from seven_exp.shrink.attention import slim
from seven_exp.shrink.constants import constants, fold, merge, set_rows_to_zero
from seven_exp.shrink.coupling import Port, Unit, coupled, no_units
from seven_exp.shrink.depth import keep_blocks, living
from seven_exp.shrink.probing import Probe
from seven_exp.shrink.sizes import by_input, keep_inputs, keep_outputs, rows_of
from seven_exp.shrink.verify import Inputs, outputs_kept

_TORCH_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Shrunk:
    """A part of the model that has become smaller.

    Attributes:
        name: Name of the attention, of the list of blocks, or of the first layer that makes the
            units.
        unit: "neurons", "channels", "heads", "dimensions" (of queries, keys and values) or
            "blocks".
        before: Number of units before.
        after: Number of units after.
        kept: The indices of the blocks that stay; empty for other units.
    """

    name: str
    unit: str
    before: int
    after: int
    kept: tuple[int, ...] = ()


def shrink(model: nn.Module, example_inputs: Inputs) -> list[Shrunk]:
    """Remove all units without effect, in place, and verify that the outputs stay the same.

    Args:
        model: Pruned weights zero, float32 or float64. Its behaviour in evaluation mode counts;
            every module keeps its mode.
        example_inputs: Inputs for comparing the outputs before and after: a tensor, a tuple
            of arguments or a mapping of keyword arguments. A part of the model that they do not
            reach is not changed.

    Returns:
        What has become smaller, in the model's order; nothing if every unit has an effect. Units
        whose removal the model's own code does not survive stay.

    Raises:
        ValueError: The model has no units that can be removed, or its outputs would change by more
            than rounding. The model is then unchanged.
    """
    model = unwrap(model)
    found: list[Shrunk] = []
    if kept := living(model):
        with suppress(ValueError):
            with outputs_kept(model, example_inputs):
                shallower = _shallower(model, kept)
            found = shallower
    units, attentions = coupled(model, example_inputs), _attentions(model)
    if not units and not attentions:
        if found:
            return found
        raise ValueError(no_units(model))
    try:
        with outputs_kept(model, example_inputs):
            return found + _removed(model, example_inputs, units) + _slimmed(model, attentions)
    except ValueError as error:
        first = error
    # Some part can't be removed: each is tried by itself.
    parts = [partial(_removed, model, example_inputs, family) for family in _families(units)]
    parts += [partial(_slimmed, model, [attention]) for attention in attentions]
    for part in parts:
        try:
            with outputs_kept(model, example_inputs):
                removed = part()
        except ValueError:
            continue
        found += removed
    if not found:
        raise first
    return found


def _shallower(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> list[Shrunk]:
    """Remove the blocks without weights; with a residual sum they return what they read."""
    sizes = {name: len(list(model.get_submodule(name).children())) for name in kept}
    keep_blocks(model, kept)
    return [Shrunk(name, "blocks", sizes[name], len(at), tuple(at)) for name, at in kept.items()]


def _families(units: Iterable[Unit]) -> list[list[Unit]]:
    """The units by the weights that they belong to."""
    found: dict[object, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.ports, []).append(unit)
    return list(found.values())


def _places(units: Iterable[Unit]) -> dict[Port, Tensor]:
    """Port -> the indices of all units."""
    found: dict[Port, list[int]] = {}
    for unit in units:
        for port, indices in unit.places.items():
            found.setdefault(port, []).extend(indices)
    return {port: torch.tensor(indices) for port, indices in found.items()}


@torch.no_grad()
def _removed(model: nn.Module, inputs: Inputs, units: Sequence[Unit]) -> list[Shrunk]:
    """Remove those of the units that have no effect."""
    modules = dict(model.named_modules())
    read = {name: at for (name, side), at in _places(units).items() if side == "columns"}
    families = _families(units)
    going = True
    while going:
        values = constants(Probe.of(model, inputs))
        going = sum(fold(modules[name], values[name], at) for name, at in read.items()) > 0
        unread = _unread(modules, units)
        rows = {name: at for (name, side), at in _places(unread).items() if side == "rows"}
        going |= sum(set_rows_to_zero(modules[name], at) for name, at in rows.items()) > 0
        if not going:
            going = sum(_merged(modules, family, values) for family in families) > 0
    gone = set(_unread(modules, units))
    # At least one unit stays, so that every layer has a size.
    gone -= {family[0] for family in families if gone.issuperset(family)}
    for (name, side), at in _places(gone).items():
        module = modules[name]
        size = len(by_input(module)) if side == "columns" else rows_of(module)
        kept = torch.ones(size, dtype=torch.bool)
        kept[at] = False
        (keep_inputs if side == "columns" else keep_outputs)(module, kept.nonzero().squeeze(1))
    return _report(modules, families, gone)


def _unread(modules: Mapping[str, nn.Module], units: Iterable[Unit]) -> list[Unit]:
    """The units that no layer reads."""
    zero: dict[str, list[bool]] = {}

    def is_zero(name: str, indices: Iterable[int]) -> bool:
        if name not in zero:
            zero[name] = _zero_columns(modules[name]).tolist()
        return all(zero[name][i] for i in indices)

    return [unit for unit in units if all(is_zero(*place) for place in unit.of("columns"))]


def _zero_columns(module: nn.Module) -> Tensor:
    return by_input(module).eq(0).flatten(1).all(1)


def _merged(
    modules: Mapping[str, nn.Module], family: Sequence[Unit], values: Mapping[str, Tensor]
) -> bool:
    """Let one constant unit of a family stand for all of them, where layers pad their inputs."""
    names = [name for name, _ in family[0].of("columns")]
    at = {name: torch.tensor([unit.places[name, "columns"] for unit in family]) for name in names}
    constant_or_unread, not_zero, read = [], [], []
    for name in names:
        value, live = values[name][at[name]], ~_zero_columns(modules[name])[at[name]]
        constant_or_unread.append((value.isfinite() | ~live).all(1))
        not_zero.append(value.isfinite() & (value != 0))
        read.append(live)
    able, is_read = torch.cat(not_zero, 1), torch.cat(read, 1)
    constant = torch.stack(constant_or_unread).all(0) & is_read.any(1)
    # A representative's constants are not zero wherever another unit is read.
    needed = is_read[constant].any(0)
    fit = constant & (able | ~needed).all(1)
    if not bool(fit.any()) or int(constant.sum()) < 2:
        return False
    level = torch.cat([values[name][at[name]].abs().nan_to_num() for name in names], 1)
    lowest = level.masked_fill(~needed, torch.inf).amin(1)
    representative = int(lowest.masked_fill(~fit, -1).argmax())
    constant[representative] = False
    for name in names:
        merge(modules[name], values[name], at[name][representative], at[name][constant])
    return True


def _report(
    modules: Mapping[str, nn.Module], families: Iterable[Sequence[Unit]], gone: AbstractSet[Unit]
) -> list[Shrunk]:
    found = []
    for family in families:
        after = sum(unit not in gone for unit in family)
        if after < len(family):
            name, rows = next(family[0].of("rows"))
            kind = "channels" if isinstance(modules[name], nn.modules.conv._ConvNd) else "neurons"
            if len(rows) > 1:
                kind = "heads"
            found.append(Shrunk(name, kind, len(family), after))
    return found


def _attentions(model: nn.Module) -> list[tuple[str, nn.MultiheadAttention]]:
    """Attention that is only called as a module by its block."""
    # These blocks read its weights, and pass masks to it.
    kept = {
        part
        for module in model.modules()
        if isinstance(module, _TORCH_LAYERS)
        for part in module.children()
    }
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and module not in kept
    ]


def _slimmed(
    model: nn.Module, attentions: Iterable[tuple[str, nn.MultiheadAttention]]
) -> list[Shrunk]:
    """Remove heads, and dimensions of heads, that have no effect."""
    found = []
    for name, attention in attentions:
        slimmed = slim(attention)
        if slimmed is not None:
            model.set_submodule(name, slimmed.eval())
            found += [
                Shrunk(name, "heads", attention.num_heads, slimmed.number),
                Shrunk(
                    *(name, "dimensions", 3 * attention.embed_dim, slimmed.in_proj.out_features)
                ),
            ]
    return [part for part in found if part.after < part.before]
