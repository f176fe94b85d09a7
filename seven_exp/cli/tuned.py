"""Tuned values: the file that ``seven-exp tune`` writes, and its use in later runs."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seven_exp.config import ConfigError, RunConfig
from seven_exp.files.atomic import replacing
from seven_exp.runs.provenance import command, now, versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """What was found for a method.

    Attributes:
        values: Key of the config -> value; none: the defaults.
        found: How.
        value: Mean of the headline metric with these values on the validation split.
        default: The same with the default values; None if they were not tried.
        metric: Its name.
        study: Name of the study.
    """

    values: Mapping[str, Any]
    found: str
    value: float | None = None
    default: float | None = None
    metric: str | None = None
    study: str | None = None


def write_tuned(
    path: Path, methods: Mapping[str, Tuned], runs: Sequence[RunConfig], trials: int
) -> None:
    """Write the values of all methods so far, and how they were found.

    Args:
        path: The file.
        methods: Registered name of the pruner -> what was found.
        runs: The runs of one trial of the latest method, without the searched values.
        trials: Trials of each method.

    Raises:
        ConfigError: It can't be written.
    """
    content = {
        "found": {
            "command": command(["seven-exp", "train", *sys.argv[1:]]),
            "ended": now(),
            "model": runs[0].model.name,
            "dataset": runs[0].dataset.name,
            "split": "validation",
            "validation": runs[0].dataset.validation,
            "trials": trials,
            "seeds": sorted({run.seed for run in runs}),
            "sparsities": sorted({run.sparsity for run in runs}),
            "versions": versions(),
        },
        "methods": {name: asdict(tuned) for name, tuned in methods.items()},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    except OSError as error:
        raise ConfigError(f"tune.output is '{path}': {error.strerror or error}") from error


def with_tuned(values: DictConfig, given: Sequence[str]) -> DictConfig:
    """A composed config with the values of its key ``tuned`` for its pruner.

    A pruner that the file does not name keeps its values.

    Args:
        values: The config.
        given: The command line, whose own values win.

    Raises:
        ConfigError: The file can't be read, or names keys that the config does not have.
    """
    # The schema reports a section that is none.
    if values.tuned is None or not isinstance(values.pruner, DictConfig):
        return values
    path, name = Path(str(values.tuned)), str(values.pruner.name)
    try:
        content = yaml.safe_load(path.expanduser().read_text("utf-8"))
        methods, found = content["methods"], content.get("found", {})
        own = methods[name]["values"] if name in methods else {}
        elsewhere = {
            key: found[key]
            for key in ("model", "dataset")
            if own and key in found and found[key] != OmegaConf.select(values, f"{key}.name")
        }
    except OSError as error:
        raise ConfigError(f"tuned is '{path}': {error.strerror or error}") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"tuned is '{path}': it is not a file that seven-exp tune wrote"
        ) from error
    if not own:
        log.info("%s has no values for %s: its defaults are used", path, name)
    if elsewhere:
        where = ", ".join(f"{key}={value}" for key, value in elsewhere.items())
        log.warning("%s: its values for %s were found with %s", path, name, where)
    typed = {override.partition("=")[0].lstrip("+") for override in given}
    values = values.copy()
    for key, value in own.items():
        if key not in typed:
            try:
                OmegaConf.update(values, key, value)
            except OmegaConfBaseException as error:
                raise ConfigError(f"tuned is '{path}': {key}: no such key for {name}") from error
    return values


def show_tuned(methods: Mapping[str, Tuned]) -> None:
    """Print the values as a table."""
    from seven_exp.console import print_table

    lines = []
    for name, tuned in methods.items():
        figures = ("" if v is None else f"{v:.4f}" for v in (tuned.default, tuned.value))
        values = ", ".join(f"{key}={_short(value)}" for key, value in tuned.values.items())
        lines.append([name, *figures, values or tuned.found])
    print_table(("method", "default", "tuned", "values"), lines, words=("method", "values"))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
