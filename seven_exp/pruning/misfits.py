"""Misfits: layers that a method, a pattern or a scope can't prune are refused or left dense."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

from seven_exp.messages import nearest
from seven_exp.pruning.inputs import reveals_inputs
from seven_exp.pruning.layers import Coverage, matches
from seven_exp.pruning.matrices import Layer, transposed
from seven_exp.pruning.patterns import Pattern, Units

Misfits = Literal["error", "dense"]
"""What to do with layers that don't fit: raise an error that names them, or leave them dense."""

_SHOWN = 3


def misfits_of(
    layers: Sequence[Layer],
    pattern: Pattern,
    *,
    each_row: bool,
    solved: bool,
    needs_gradients: bool,
) -> dict[str, str]:
    """Name -> reason, as a sentence, for each layer that the method can't prune.

    Args:
        layers: The prunable weights.
        pattern: Which sets of weights may be pruned together; see also `Pattern.misfits`.
        each_row: Whether weights compete within their output row.
        solved: Whether a solver prunes them by their inputs.
        needs_gradients: Whether frozen weights are misfits.
    """
    of_rows = each_row or pattern.counts_rows
    found: dict[str, str] = {}
    for layer in layers:
        if solved and not reveals_inputs(layer):
            kind = type(layer.module).__name__
            found[layer.name] = f"{layer.name} is part of a {kind}, which hides its inputs"
        elif of_rows and transposed(layer) and not (solved and _turns(layer, pattern)):
            found[layer.name] = f"{layer.name} is transposed: its rows are inputs"
        elif needs_gradients and not layer.weight.requires_grad:
            found[layer.name] = f"{layer.name} is frozen, but the pruner needs its gradient"
    return found


def _turns(layer: Layer, pattern: Pattern) -> bool:
    """Whether a solver transposes matrices before it scores them."""
    return (layer.weight.dim() == 2 or layer.stacked) and not isinstance(pattern, Units)


def resolve(coverage: Coverage, found: Mapping[str, str], choice: Misfits) -> Coverage:
    """Refuse the misfits, or leave them dense with one warning.

    Raises:
        ValueError: ``choice`` is "error", or no other layer is left.
    """
    if choice not in ("error", "dense"):
        raise ValueError(f"unknown misfits '{choice}': {nearest(choice, ('error', 'dense'))}")
    if not found:
        return coverage
    words = "; ".join(list(found.values())[:_SHOWN])
    if len(found) > _SHOWN:
        words += f"; and {len(found) - _SHOWN} more"
    if len(found) == len(coverage.layers):
        it = "it" if len(found) == 1 else "them"
        raise ValueError(f"{words}: without {it}, nothing is left to prune")
    if choice == "error":
        it = "it" if len(found) == 1 else "them"
        raise ValueError(
            f"{words}: exclude {it} with exclude={_names(coverage.layers, found)}, or leave "
            f"{it} dense with misfits=dense (pruner.misfits=dense on the command line)"
        )
    sizes = {layer.name: layer.weight.numel() for layer in coverage.layers}
    share = sum(sizes[name] for name in found) / coverage.prunable
    warnings.warn(
        f"{len(found)} of {len(sizes)} layers, {share:.1%} of their weights, stay dense: {words}",
        stacklevel=3,
    )
    return coverage.without(dict.fromkeys(found, "misfits"))


def _names(layers: Sequence[Layer], found: Mapping[str, str]) -> list[str]:
    """Names to exclude these layers and no others; repeated blocks get one name pattern."""
    places = [name.rpartition(".")[0] or name for name in found]
    patterns = [re.sub(r"\d+", "*", place) for place in places]
    names: dict[str, None] = {}
    for name, place, pattern in zip(found, places, patterns, strict=True):
        choices = (*([pattern] if patterns.count(pattern) > 1 else []), place, name)
        names[next(choice for choice in choices if _excludes(choice, layers, found))] = None
    return list(names)


def _excludes(choice: str, layers: Sequence[Layer], found: Mapping[str, str]) -> bool:
    """Whether a name or name pattern matches some layers, all of which are misfits."""
    return all(layer.name in found for layer in layers if matches(layer.name, choice))
