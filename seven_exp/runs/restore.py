"""Restores a finished run from its folder."""

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from seven_exp.config import ConfigError, Dataset, Model, RunConfig, Trainer, faults_of_the_user
from seven_exp.datasets import Data
from seven_exp.models.loading import load_state, read_state
from seven_exp.pruning.masks import Masks
from seven_exp.runs.artifacts import FINAL, FOLDER, MASKS, checksums, load_masks
from seven_exp.runs.build import blank_model, data_of, saved_model
from seven_exp.runs.plugins import described, load_plugins

log = logging.getLogger(__name__)

NEEDED = {"model": dict, "dataset": dict, "trainer": dict, "plugins": list, "seed": int}
"""Keys and types that a record's config needs to rebuild its model and data."""


@dataclass(frozen=True)
class Restored:
    """A model with everything that is needed to use it.

    Attributes:
        record: As in ``results.json``.
        config: The sections that model and data are built from.
        data: The run's data.
        model: On the CPU, in evaluation mode, pruned weights zero.
        masks: Parameter name -> bool tensor, True = kept.
        dense_bytes: Size of the run's own checkpoint.
    """

    record: Mapping[str, Any]
    config: RunConfig
    data: Data
    model: nn.Module
    masks: Mapping[str, Tensor]
    dense_bytes: int


def restore(folder: Path, *, trust_plugins: bool = False) -> Restored:
    """Read a run's record, build its data and model, and load its files.

    Args:
        folder: Folder of a finished run.
        trust_plugins: Whether to run the plugins that its record names.

    Raises:
        ConfigError: It is not such a folder, its model was not saved or was changed, its
            data can't be loaded, or it names plugins that are not trusted.
    """
    with faults_of_the_user():
        record = read_record(folder)
        checkpoint = folder / FINAL
        if (folder / FOLDER).is_dir():
            checkpoint = folder / FOLDER
        elif not checkpoint.is_file():
            raise ValueError(
                f"'{folder}' has no checkpoints/final.safetensors, because the run had "
                "trainer.save_model=false; run it again with trainer.save_model=true"
            )
        _verify(folder, record.get("sha256"))
        config, data = reopened(
            record["config"], record.get("directory"), trust_plugins=trust_plugins
        )
        if checkpoint.is_dir():
            model = saved_model(config.model, data, checkpoint)
        else:
            model = blank_model(config.model, data)
            _load(model, checkpoint)
        own = model.state_dict()
        masks = load_masks(folder / MASKS)
        for name, mask in masks.items():
            if name not in own or own[name].shape != mask.shape:
                raise ValueError(f"'{folder / MASKS}' is of another model: {name} does not fit")
        weights = [model.get_parameter(name) for name in masks]
        Masks(weights, list(masks.values())).apply(weights)
        files = [checkpoint] if checkpoint.is_file() else checkpoint.glob("*.safetensors")
        size = sum(file.stat().st_size for file in files)
        return Restored(record, config, data, model, masks, size)


def _load(model: nn.Module, checkpoint: Path) -> None:
    state, own = read_state(checkpoint), model.state_dict()
    for name, tensor in state.items():
        # A head for other classes would keep its initial weights.
        if name in own and own[name].shape != tensor.shape:
            raise ValueError(
                f"'{checkpoint}' does not fit the data any more: {name} has shape "
                f"{tuple(tensor.shape)}, but the model's has {tuple(own[name].shape)}"
            )
    load_state(model, state, f"'{checkpoint}'")


def _verify(folder: Path, recorded: Any) -> None:
    """Compare a run's files with the checksums in its record.

    Raises:
        ValueError: A file is not the one that the run wrote.
    """
    if not isinstance(recorded, dict):
        _warn_unverified(folder)
        return
    for name, sha256 in checksums(folder).items():
        if recorded.get(name) != sha256:
            raise ValueError(
                f"'{folder / name}' is not the file that the run wrote: its SHA-256 is {sha256}, "
                f"in the record it is {recorded.get(name)}; copy the file again or repeat the run"
            )


@cache
def _warn_unverified(folder: Path) -> None:
    """Warn once, however often a folder is read."""
    log.warning("'%s': the record is old and has no checksums: nothing is verified", folder)


def reopened(
    values: Mapping[str, Any], directory: str | None, *, trust_plugins: bool
) -> tuple[RunConfig, Data]:
    """The config of a record, and its data.

    Args:
        values: The config.
        directory: Folder where the run was started, if known: plugins and a relative ``data_dir``
            that are not found from here are searched from there.
        trust_plugins: Whether to run the plugins that the config names.

    Raises:
        ConfigError: A plugin can't be imported, or is not trusted.
        OSError, ValueError: The data can't be loaded.
    """
    lost: list[str] = []  # relative paths found nowhere

    def found(path: str) -> str:
        there, given = Path(directory or "", path), Path(path).expanduser()
        if not given.exists() and there.exists():
            return str(there)
        if not given.exists() and not given.is_absolute():
            lost.append(path)
        return path

    plugins = [found(p) if p.endswith(".py") else p for p in values["plugins"]]
    if plugins and not trust_plugins:
        named = ", ".join(described(plugin, directory) for plugin in plugins)
        raise ConfigError(
            f"plugins: the record names code, which is not run by default: {named}; read it, then "
            "pass --plugins (in Python, trust_plugins=True)"
        )
    dataset = dict(values["dataset"])
    if isinstance(dataset.get("data_dir"), str):
        dataset["data_dir"] = found(dataset["data_dir"])
    if plugins and directory is not None and directory not in sys.path:
        # Last, so that the present folder takes precedence.
        sys.path.append(directory)
    # The config is not checked again: its schema changes between versions, but the keys for model
    # and data do not.
    config = RunConfig.model_construct(
        model=Model.model_construct(**values["model"]),
        # Older records lack the key, and only the test split is used.
        dataset=Dataset.model_construct(**{**dataset, "validation": 0.0}),
        trainer=Trainer.model_construct(**values["trainer"]),
        seed=values["seed"],
        plugins=plugins,
    )
    try:
        load_plugins(config.plugins)
        data = data_of(config.dataset, config.trainer.batch_size, config.seed)
    except (OSError, ValueError) as error:
        if not lost:
            raise
        started = f"'{directory}'" if directory else "the folder"
        raise ConfigError(
            f"{error} (relative to {started} where the run was started: {', '.join(lost)})"
        ) from error
    return config, data


def read_record(folder: Path) -> dict[str, Any]:
    """Read a finished run's ``results.json``.

    Raises:
        ValueError: There is none, or the run did not finish.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder '{folder}'")
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"'{folder}' is not a run's folder: it has no results.json")
    try:
        record: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"'{path}' is broken: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"'{path}' is not a run's record")
    if record.get("status") != "finished":
        raise ValueError(f"'{folder}' holds a run that is {record.get('status')}, not finished")
    config = record.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"'{path}' does not hold the run's config")
    for key, kind in NEEDED.items():
        if not isinstance(config.get(key), kind):
            raise ValueError(f"'{path}' does not hold the whole config: {key} is missing or broken")
    return record
