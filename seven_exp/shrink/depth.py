"""Depth: removes blocks without weights, so that the model has fewer layers."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from seven_exp.pruning.matrices import matrices
from seven_exp.pruning.structure import blocks_of, structure_of


def living(model: nn.Module) -> dict[str, list[int]]:
    """The blocks that have weights, where others have none but those of routers.

    Returns:
        Name of a list of blocks -> the indices of those with weights.
    """
    layers = list(matrices(model))
    structure = structure_of(model, layers)
    plain = [layer for layer in layers if structure.role(layer.name) is None]
    modules = {layer.module for layer in plain}
    alive = {layer.module for layer in plain if bool(layer.weight.any())}
    zero = set()
    for block in blocks_of(model):
        own = modules & set(block.modules())
        if own and not own & alive:
            zero.add(block)
    found = {}
    for name, module in model.named_modules():
        children = list(module.children())
        kept = [i for i, child in enumerate(children) if child not in zero]
        if isinstance(module, nn.ModuleList | nn.Sequential) and 0 < len(kept) < len(children):
            found[name] = kept
    return found


def keep_blocks(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove all other blocks of some lists, and number those that stay.

    Args:
        model: Changed in place; a configuration of transformers is replaced.
        kept: Name of a list -> the indices of the blocks to keep.
    """
    for name, places in kept.items():
        blocks: Any = model.get_submodule(name)
        before = len(blocks)
        for i in reversed(range(before)):
            if i not in places:
                del blocks[i]
        for i, block in enumerate(blocks):
            for module in block.modules():
                # Attention finds its keys and values in the cache by this number.
                if "layer_idx" in vars(module):
                    module.layer_idx = i
        _describe(model, before, places)


def _describe(model: nn.Module, before: int, kept: Sequence[int]) -> None:
    """Put the number of blocks into the configurations that state it."""
    new: dict[int, Any] = {}
    for module in model.modules():
        config = vars(module).get("config")
        if getattr(config, "num_hidden_layers", None) != before:
            continue
        if id(config) not in new:
            new[id(config)] = copy.deepcopy(config)
            lists = {k: v for k, v in vars(config).items() if "layer" in k and isinstance(v, list)}
            for key, values in lists.items():
                if len(values) == before:
                    setattr(new[id(config)], key, [values[i] for i in kept])
            new[id(config)].num_hidden_layers = len(kept)
        vars(module)["config"] = new[id(config)]
