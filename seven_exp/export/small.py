"""Small: a dense model without the rows, channels, heads and blocks that have no effect."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seven_exp.export import dense
from seven_exp.export.formats import ExportError
from seven_exp.export.tensors import read_state, state_of, write_state
from seven_exp.models import is_hub_model
from seven_exp.runs.build import first_inputs
from seven_exp.runs.restore import Restored
from seven_exp.shrink import fit, keep_blocks, shrink

EXACT, TAKES_EXPORTS = False, False


def write(source: Restored, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """``model.safetensors`` with smaller tensors, or fewer, under the same names.

    A model of transformers that only has fewer blocks is a folder for its ``from_pretrained``.

    Raises:
        ExportError: Every unit has an effect, the model's kind is unknown, or its outputs
            would change.
    """
    model = copy.deepcopy(source.model)
    try:
        shrunk = shrink(model, first_inputs(source.data.test))
    except ValueError as error:
        raise ExportError(f"format small: {error}") from error
    if not shrunk:
        raise ExportError(
            "format small: no neuron, channel, head or block of this run is pruned entirely; use "
            "it for runs with pruner.pattern=coupled, rows, heads or depth"
        )
    if is_hub_model(source.config.model.name) and {part.unit for part in shrunk} == {"blocks"}:
        # transformers' configurations state the number of blocks, but not sizes for each of them.
        dense.write(replace(source, model=model), folder, dtype)
    else:
        write_state(folder, state_of(model, dtype))
    return {
        "shrunk": [vars(part) for part in shrunk],
        "params": sum(p.numel() for p in model.parameters()),
    }


def read(folder: Path, facts: Mapping[str, Any], blank: Callable[[], nn.Module]) -> nn.Module:
    """The architecture, resized to the file's tensors; a folder of transformers as it says."""
    if (folder / "config.json").is_file():
        return dense.read(folder, facts, blank)
    model = blank()
    blocks = {part["name"]: part["kept"] for part in facts["shrunk"] if part["unit"] == "blocks"}
    keep_blocks(model, blocks)
    fit(model, read_state(folder))
    return model
