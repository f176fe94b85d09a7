"""Dense: pruned weights are zeros in an ordinary state dict."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seven_exp.export.tensors import read_state, state_of, write_state
from seven_exp.models import is_hub_model
from seven_exp.models.loading import load_state
from seven_exp.runs.restore import Restored

EXACT, TAKES_EXPORTS = True, False


def write(source: Restored, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """``model.safetensors``; for transformers' models with ``config.json`` and the tokenizer."""
    if not is_hub_model(source.config.model.name):
        write_state(folder, state_of(source.model, dtype))
        return {}
    model: Any = copy.deepcopy(source.model).to(dtype)
    model.save_pretrained(folder)
    tokenizer = source.config.dataset.arguments.get("tokenizer")
    if tokenizer is not None:
        from seven_exp.datasets.tokens import load_tokenizer

        load_tokenizer(tokenizer).save_pretrained(folder)
    return {}


def read(folder: Path, facts: Mapping[str, Any], blank: Callable[[], nn.Module]) -> nn.Module:
    """Load with ``load_state_dict``, or with transformers' ``from_pretrained``."""
    model = blank()
    if is_hub_model(facts["config"]["model"]["name"]):
        kind: Any = type(model)
        loaded: nn.Module = kind.from_pretrained(folder, dtype=torch.float32).eval()
        return loaded
    load_state(model, read_state(folder), f"'{folder}'")
    return model
