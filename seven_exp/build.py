"""A run's data and model, made as its config says."""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from seven_exp.config import RunConfig
from seven_exp.datasets import Batches, Data, build_data
from seven_exp.models import build_model, factory
from seven_exp.tasks import Inputs


def data_of(config: RunConfig, seed: int) -> Data:
    """The data, their order drawn from ``seed``.

    Raises:
        ValueError: They can't be had.
    """
    return build_data(
        config.dataset.name,
        batch_size=config.trainer.batch_size,
        seed=seed,
        **config.dataset.arguments,
    )


def model_of(config: RunConfig, data: Data) -> nn.Module:
    """The model as training starts from it, but for dense pretraining.

    Raises:
        ValueError: It can't be had, or does not fit the data.
    """
    model = build_model(
        config.model.name,
        checkpoint=config.model.checkpoint,
        **data.for_model,
        **config.model.arguments,
    )
    if config.trainer.gradient_checkpointing:
        cast(Any, model).gradient_checkpointing_enable({"use_reentrant": False})
    return model


def blank_model(config: RunConfig, data: Data) -> nn.Module:
    """The model's architecture, in evaluation mode, its weights to be overwritten.

    Raises:
        ValueError: See `model_of`.
    """
    arguments = config.model.arguments
    make = factory(config.model.name, "images" if data.text is None else "text")
    if "pretrained" in inspect.signature(make).parameters:
        arguments["pretrained"] = False
    return build_model(config.model.name, **data.for_model, **arguments).eval()


def first_inputs(batches: Batches) -> Inputs:
    """The inputs of a split's first batch."""
    inputs, _ = next(iter(batches.epoch(0)))
    return inputs


def first_example(batches: Batches, device: torch.device) -> Inputs:
    """One example's inputs, for counting operations: the first of the split, of text the shortest.

    Text is padded to nothing there, so that the figure is that of one length.
    """
    inputs = first_inputs(batches)
    if isinstance(inputs, Mapping):
        return {name: values[:1].to(device) for name, values in inputs.items()}
    return inputs[:1].to(device)
