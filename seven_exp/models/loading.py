"""Loads state dicts from files into models."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

HEADS = ("head.", "heads.", "fc.", "classifier.", "pre_classifier.", "score.", "qa_outputs.")
"""Prefixes of the names of a head's parameters."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: a file, or a folder of safetensors; no code is executed.

    Raises:
        ValueError: It is missing, broken, or holds something else.
    """
    if path.is_dir() and (files := sorted(path.glob("*.safetensors"))):
        return {name: tensor for file in files for name, tensor in read_state(file).items()}
    if not path.is_file():
        raise ValueError(f"model.checkpoint is '{path}': no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message suggests switching off the protection against executing code.
        kind = "no checkpoint of weights, a state dict saved alone"
        raise ValueError(f"model.checkpoint is '{path}': it is {kind}") from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"model.checkpoint is '{path}': can't be read: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"model.checkpoint is '{path}': it holds no state dict")
    return state


def mark_new_head(model: nn.Module) -> None:
    """Note that the weights that were loaded have no head for these classes; see `has_new_head`."""
    cast(Any, model).head_is_new = True


def has_new_head(model: nn.Module) -> bool:
    """Whether a model's head has its initial weights, unlike the rest."""
    return getattr(model, "head_is_new", False)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict; a head of another shape keeps its initial weights.

    Raises:
        ValueError: Other parameters are missing, unknown or differ in shape.
    """
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(HEADS) or (name in own and own[name].shape == tensor.shape)
    }
    try:
        # torch compares names, because modules know their names in older files.
        missing, unknown = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        shapes = str(error).splitlines()[1].strip()
        raise ValueError(f"{source} is of another model: {shapes}") from error
    fresh = [name for name in missing if name.startswith(HEADS)]
    # A weight shared by two modules is stored once.
    places = model.state_dict(keep_vars=True)
    given = {id(places[name]) for name in fitting if name in places}
    lacking = [n for n in missing if n not in fresh and id(places[n]) not in given]
    if lacking or unknown:
        raise ValueError(
            f"{source} is of another model: {[*lacking, *unknown][0]} does not fit "
            f"({len(lacking)} parameters missing, {len(unknown)} unknown)"
        )
    if fresh:
        mark_new_head(model)
        log.info("%s: its head is for other classes; a new one is trained", source)
