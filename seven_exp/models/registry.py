"""Name -> model, and starting one from a file."""

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
            for another number of classes is left out.
        **arguments: The model's own keywords.

    Raises:
        ValueError: Unknown name, a value out of range, or a checkpoint of another model.
    """
    model = MODELS[name](num_classes, image_size, channels, **arguments)
    if checkpoint is not None:
        load_state(model, read_state(Path(checkpoint)), str(checkpoint))
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
        raise ValueError(f"model.checkpoint is '{path}': can't be read: {error}") from error
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
    fresh = [
        name
        for name, tensor in own.items()
        if name.startswith(HEADS) and (name not in state or state[name].shape != tensor.shape)
    ]
    wanted = {name: state.get(name) for name in own if name not in fresh}
    wrong = [
        name for name, tensor in wanted.items() if tensor is None or tensor.shape != own[name].shape
    ]
    unknown = [name for name in state if name not in own and not name.startswith(HEADS)]
    if wrong or unknown:
        raise ValueError(
            f"{source} is of another model: {(wrong + unknown)[0]} does not fit "
            f"({len(wrong)} parameters missing or of another shape, {len(unknown)} unknown)"
        )
    model.load_state_dict({**own, **{name: t for name, t in wanted.items() if t is not None}})
    if fresh:
        log.info("%s: its head is for other classes; a fresh one is trained", source)
