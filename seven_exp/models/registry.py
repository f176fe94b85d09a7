"""Name -> model, and starting one from a file."""

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.registry import Registry

log = logging.getLogger(__name__)

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
"""Factories ``(num_classes, image_size, channels, *, **arguments) -> nn.Module``."""

HEADS = ("head.", "heads.", "fc.", "classifier.")
"""How the names of a classifier head's parameters begin."""


def build_model(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    channels: int,
    checkpoint: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """A model for images of shape (channels, image_size, image_size).

    Args:
        name: A registered name.
        num_classes: Logits.
        image_size: Side of the images.
        channels: 1 (grey) or 3.
        checkpoint: A state dict to start from, ``.safetensors`` or torch's own format; a head made
            for another number of classes is left out. It replaces pretrained weights.
        **arguments: The model's own keywords.

    Raises:
        ValueError: Unknown name, a value out of range, or a checkpoint of another model.
    """
    make = MODELS[name]
    if checkpoint is None:
        return make(num_classes, image_size, channels, **arguments)
    state = read_state(Path(checkpoint).expanduser())
    if "pretrained" in inspect.signature(make).parameters:
        # The file overwrites those weights: nobody should have to be online to get them.
        arguments["pretrained"] = False
    model = make(num_classes, image_size, channels, **arguments)
    load_state(model, state, f"model.checkpoint '{checkpoint}'")
    return model


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; nothing in it is executed.

    Raises:
        ValueError: It is missing, broken, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"model.checkpoint is '{path}': no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"model.checkpoint is '{path}': can't be read: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"model.checkpoint is '{path}': it holds no state dict")
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict, leaving the head fresh where its shape differs.

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
        # Names are torch's to compare: modules know what they were called in older files.
        missing, unknown = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        shapes = str(error).splitlines()[1].strip()
        raise ValueError(f"{source} is of another model: {shapes}") from error
    fresh = [name for name in missing if name.startswith(HEADS)]
    lacking = [name for name in missing if name not in fresh]
    if lacking or unknown:
        raise ValueError(
            f"{source} is of another model: {[*lacking, *unknown][0]} does not fit "
            f"({len(lacking)} parameters missing, {len(unknown)} unknown)"
        )
    if fresh:
        log.info("%s: its head is for other classes; a fresh one is trained", source)
