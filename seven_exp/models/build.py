"""Builds a model by name, for data of one kind."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from seven_exp.models.fitting import check_images
from seven_exp.models.hub import NAMES, is_source, needs_extra
from seven_exp.models.hub_models import config_of, image_model, text_model
from seven_exp.models.loading import load_state, read_state
from seven_exp.models.registry import CHECKS, MODELS
from seven_exp.models.shards import check_folder
from seven_exp.tasks import LanguageModelling

Kind = Literal["images", "text"]


def factory(name: str, kind: Kind) -> Callable[..., nn.Module]:
    """The factory for a registered name, a hub id or a local folder, for data of this kind.

    Raises:
        ValueError: The name is unknown, or the model is for other data.
    """
    if name not in MODELS and is_source(name):
        return text_model(name) if kind == "text" else image_model(name)
    make = MODELS[name]
    reads = "text" if "vocab_size" in inspect.signature(make).parameters else "images"
    if reads != kind:
        choices = {"text": "model=minilm or model=bert_base", "images": "model=vit_tiny"}
        raise ValueError(
            f"model.name is '{name}': it reads {reads} and the data set is {kind}; choose "
            f"{choices[kind]}, or another data set"
        )
    return make


def check_model(name: str, head: str | None, **arguments: Any) -> None:
    """Check, before data or weights are read, whether there is such a model for the task.

    Args:
        name: A registered name, a hub id or a local folder.
        head: The text task; None for images.
        **arguments: The model's own keywords.

    Raises:
        ValueError: It is not installed, can't be loaded or does not fit.
    """
    if name in CHECKS:
        CHECKS[name](**arguments)
    if is_hub_model(name):
        needs_extra("model.name", name)
        config = config_of(name, head or "images")
        if head == LanguageModelling.head:
            check_folder(name, config)


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
        checkpoint: A state dict to start from, ``.safetensors`` or torch's own format; a head
            for another number of classes is skipped. It replaces pretrained weights.
        **arguments: Properties of the data, `num_classes` (logits) with `image_size` and
            `channels`, or with `vocab_size`, `max_length` and `head`; and the model's own keywords.

    Raises:
        ValueError: The name is unknown, a value is out of range, the model does not fit the data,
            or the checkpoint is of another model.
    """
    kind: Kind = "text" if "vocab_size" in arguments else "images"
    make = factory(name, kind)
    state = None
    if checkpoint is not None:
        state = read_state(Path(checkpoint).expanduser())
        if "pretrained" in inspect.signature(make).parameters:
            # The file overwrites the pretrained weights, so do not download them.
            arguments["pretrained"] = False
    model = make(**arguments)
    if kind == "images":
        arch = arguments.get("arch")
        what = f"model.arch is '{arch}'" if arch else f"model.name is '{name}'"
        data = {key: arguments[key] for key in ("num_classes", "channels", "image_size")}
        check_images(model, what, **data)
    if state is not None:
        load_state(model, state, f"model.checkpoint '{checkpoint}'")
    return model
