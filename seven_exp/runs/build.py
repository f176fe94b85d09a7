"""Builds data, model and optimizer, each from its own section of a config."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from seven_exp.config import Dataset, Model, Optimizer, RunConfig
from seven_exp.datasets import Batches, Data, build_data
from seven_exp.datasets.calibration import load_calibration
from seven_exp.datasets.perplexity import Blocks
from seven_exp.models import build_model, factory
from seven_exp.runs.reads import Pruning
from seven_exp.tasks import Inputs
from seven_exp.training.optimizers import build_optimizer


def data_of(section: Dataset, batch_size: int, seed: int) -> Data:
    """Build the data; ``seed`` determines their order, not their splits.

    Raises:
        ValueError: The data can't be loaded.
    """
    return build_data(
        section.name,
        batch_size=batch_size,
        seed=seed,
        validation=section.validation,
        limit=section.limit,
        transforms=section.transforms,
        metrics=section.metrics,
        **section.arguments,
    )


def calibration_of(config: RunConfig) -> tuple[Batches | None, list[str]]:
    """The batches that the pruner sees outside training, and how they depart from the protocol.

    None: it sees none, or those of the training.

    Raises:
        ValueError: They can't be loaded.
    """
    section, dataset = config.calibration, config.dataset.arguments
    if section is None or not Pruning.of(config).calibrated:
        return None, []
    ids, departures = load_calibration(
        section.name,
        samples=section.samples,
        length=section.length,
        data_dir=section.data_dir,
        seed=config.seed,
        tokenizer=dataset["tokenizer"],
        cache_dir=dataset["cache_dir"],
    )
    return Blocks(ids, section.batch_size), [f"calibration: {words}" for words in departures]


def check_length(config: RunConfig, model: Any) -> None:
    """Check that a model reads sequences as long as the calibration set's, if the run reads it.

    Raises:
        ValueError: It does not.
    """
    places = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    section = config.calibration if Pruning.of(config).calibrated else None
    if section is not None and places is not None and section.length > places:
        raise ValueError(
            f"calibration.length is {section.length}: the model reads at most {places} tokens; the "
            f"nearest valid choice is {places}"
        )


def model_of(config: RunConfig, data: Data) -> nn.Module:
    """Build the model with its initial weights, before dense pretraining.

    Raises:
        ValueError: It can't be built, or does not fit the data.
    """
    section = config.model
    model = build_model(
        section.name, checkpoint=section.checkpoint, **data.for_model, **section.arguments
    )
    _tell_padding(model, data)
    if config.trainer.gradient_checkpointing:
        cast(Any, model).gradient_checkpointing_enable({"use_reentrant": False})
    return model


def blank_model(section: Model, data: Data) -> nn.Module:
    """The model's architecture in evaluation mode; its weights are to be overwritten.

    Raises:
        ValueError: See `model_of`.
    """
    arguments = section.arguments
    make = factory(section.name, "images" if data.text is None else "text")
    if "pretrained" in inspect.signature(make).parameters:
        arguments["pretrained"] = False
    model = build_model(section.name, **data.for_model, **arguments).eval()
    _tell_padding(model, data)
    return model


def saved_model(section: Model, data: Data, folder: Path) -> nn.Module:
    """The model of a folder that a run wrote for transformers, in evaluation mode.

    Only transformers knows which names and experts it converted when it wrote the folder.

    Raises:
        ValueError: It can't be loaded.
    """
    arguments = section.arguments | {"pretrained": True}
    return build_model(str(folder.absolute()), **data.for_model, **arguments).eval()


def _tell_padding(model: Any, data: Data) -> None:
    """Tell a model of transformers which token pads the texts.

    Decoders classify at the last token that is another, and models state other tokens than their
    tokenizers, or none.
    """
    if hasattr(model, "config") and data.text is not None and data.text.pad is not None:
        model.config.pad_token_id = data.text.pad


def optimizer_of(section: Optimizer, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer of a section, with the given learning rate."""
    return build_optimizer(
        section.name,
        model,
        lr=lr,
        weight_decay=section.weight_decay,
        decay_norms_and_biases=section.decay_norms_and_biases,
        **section.arguments,
    )


def first_inputs(batches: Batches) -> Inputs:
    """The inputs of a split's first batch."""
    inputs, _ = next(iter(batches.epoch(0)))
    return inputs


def first_example(batches: Batches, device: torch.device) -> Inputs:
    """One example's inputs, for counting operations: the split's first, or for text the shortest.

    It has no padding, so the count is that of one length.
    """
    inputs = first_inputs(batches)
    if isinstance(inputs, Mapping):
        return {name: values[:1].to(device) for name, values in inputs.items()}
    return inputs[:1].to(device)
