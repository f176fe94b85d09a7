"""Small: a dense model without the rows, channels and heads that have no effect."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seven_exp.export.formats import ExportError
from seven_exp.export.tensors import read_state, state_of, write_state
from seven_exp.runs.build import first_inputs
from seven_exp.runs.restore import Restored
from seven_exp.shrink import fit, shrink

EXACT, TAKES_EXPORTS = False, False


def write(source: Restored, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """``model.safetensors`` with smaller tensors under the same names.

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
            "format small: no neuron, channel or head of this run is pruned entirely; use it for "
            "runs with pruner.pattern=coupled, rows or heads"
        )
    write_state(folder, state_of(model, dtype))
    return {
        "shrunk": [vars(part) for part in shrunk],
        "params": sum(p.numel() for p in model.parameters()),
    }


def read(folder: Path, facts: Mapping[str, Any], blank: Callable[[], nn.Module]) -> nn.Module:
    """The architecture, resized to the file's tensors."""
    model = blank()
    fit(model, read_state(folder))
    return model
