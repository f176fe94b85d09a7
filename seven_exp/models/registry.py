"""Name -> model, and starting one from a file."""

import inspect
import logging
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seven_exp.hub import NAMES, is_source, needs_extra
from seven_exp.registry import Registry

log = logging.getLogger(__name__)

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
"""Factories ``(num_classes, image_size, channels, *, **arguments) -> nn.Module``; those of text
take ``(num_classes, vocab_size, max_length, head, *, **arguments)``."""

Kind = Literal["images", "text"]

HUB: dict[Kind, Callable[[str], Callable[..., nn.Module]]] = {}
"""Kind of data -> hub id or local folder -> factory."""

HEADS = ("head.", "heads.", "fc.", "classifier.", "pre_classifier.", "score.", "qa_outputs.")
"""How the names of a head's parameters begin."""


def factory(name: str, kind: Kind) -> Callable[..., nn.Module]:
    """What makes the model of a registered name, a hub id or a local folder, for such data.

    Raises:
        ValueError: Unknown name, or a model of other data.
    """
    if name not in MODELS and is_source(name):
        return HUB[kind](name)
    make = MODELS[name]
    reads = "text" if "vocab_size" in inspect.signature(make).parameters else "images"
    if reads != kind:
        choices = {"text": "model=minilm or model=bert_base", "images": "model=vit_tiny"}
        raise ValueError(
            f"model.name is '{name}': it reads {reads} and the data set is {kind}; choose "
            f"{choices[kind]}, or another data set"
        )
    return make


def check_model(name: str, head: str | None) -> None:
    """Look, before data or weights are read, whether transformers has the model for the task.

    Args:
        name: A registered name, a hub id or a local folder.
        head: What text is for; None for images.

    Raises:
        ValueError: It is not installed, can't be had or does not fit.
    """
    if is_hub_model(name):
        from seven_exp.models.hub_models import config_of

        needs_extra("model.name", name)
        config_of(name, head or "images")


def is_hub_model(name: str) -> bool:
    """Whether transformers makes this model."""
    return name in NAMES or (name not in MODELS and is_source(name))


def build_model(
    name: str,
    *,
    checkpoint: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """A model for images of shape (channels, image_size, image_size), or for text.

    Args:
        name: A registered name, a hub id or a local folder.
        checkpoint: A state dict to start from, ``.safetensors`` or torch's own format; a head made
            for another number of classes is left out. It replaces pretrained weights.
        **arguments: What the data tell, `num_classes` (logits) with `image_size` and `channels`,
            or with `vocab_size`, `max_length` and `head`; and the model's own keywords.

    Raises:
        ValueError: Unknown name, a value out of range, or a checkpoint of another model.
    """
    make = factory(name, "text" if "vocab_size" in arguments else "images")
    if checkpoint is None:
        return make(**arguments)
    state = read_state(Path(checkpoint).expanduser())
    if "pretrained" in inspect.signature(make).parameters:
        # The file overwrites those weights: nobody should have to be online to get them.
        arguments["pretrained"] = False
    model = make(**arguments)
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
    except pickle.UnpicklingError as error:
        # torch would have the user switch off what keeps a file from being executed.
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
    # A weight shared by two modules is in the file once.
    places = model.state_dict(keep_vars=True)
    given = {id(places[name]) for name in fitting if name in places}
    lacking = [n for n in missing if n not in fresh and id(places[n]) not in given]
    if lacking or unknown:
        raise ValueError(
            f"{source} is of another model: {[*lacking, *unknown][0]} does not fit "
            f"({len(lacking)} parameters missing, {len(unknown)} unknown)"
        )
    if fresh:
        log.info("%s: its head is for other classes; a fresh one is trained", source)
