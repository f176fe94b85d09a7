"""Converts a record's config to the arguments of ``seven-exp train``."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from seven_exp.config import RunConfig, parse

GROUPS = ("dataset", "schedule", "pruner", "optimizer", "model")
"""Groups whose choice a config names; a trainer's choice is in its keys."""

ELSEWHERE = {"output_root", "cache_dir", "dataset.cache_dir", "tracker", "run", "compare"}
"""Keys that do not change a run: its user has other places and accounts."""

_PLAIN = re.compile(r"[A-Za-z_/][\w./+-]*")
"""Strings that Hydra's grammar needs no quotes for."""

_WORDS = {"null", "true", "false", "nan", "inf"}


def arguments(config: Mapping[str, Any], conf: Path) -> list[str]:
    """The overrides that compose a record's config again, as far as it determines the run.

    Args:
        config: A record's ``config``.
        conf: The folder of configs.

    Raises:
        HydraException, OmegaConfBaseException: ``conf/`` does not compose.
    """
    chosen = [
        f"{group}={option}"
        for group in GROUPS
        if (option := _option(conf / group, config[group]["name"])) is not None
    ]
    return [*chosen, *_differences(config, _composed(chosen, conf), "")]


def composed(overrides: list[str], conf: Path) -> RunConfig:
    """The config of these overrides.

    Raises:
        ConfigError: It is not valid.
        HydraException, OmegaConfBaseException: It does not compose.
    """
    return parse(_composed(overrides, conf))


def lost(config: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """Dotted keys of a record's config that another one has not, or with another value."""
    mine, theirs = dict(_leaves(config, "")), dict(_leaves(again, ""))
    return sorted(key for key, value in mine.items() if theirs.get(key, "") != value)


def _composed(overrides: list[str], conf: Path) -> dict[str, Any]:
    with initialize_config_dir(str(conf.resolve()), version_base="1.3", job_name="train"):
        plain = OmegaConf.to_container(compose("config", overrides), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _option(folder: Path, name: str) -> str | None:
    """The file of a group that has this name; None if there is none."""
    found = [
        path.relative_to(folder).with_suffix("").as_posix()
        for path in sorted(folder.rglob("*.yaml"))
        if re.search(rf"^name: {re.escape(name)}\s*(#.*)?$", path.read_text("utf-8"), re.MULTILINE)
    ]
    return name if name in found else next(iter(found), None)


def _differences(config: Mapping[str, Any], base: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in ELSEWHERE:
            continue
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            yield from _differences(value, base[key], f"{name}.")
        elif key not in base:
            yield f"+{name}={spelled(value)}"
        elif base[key] != value:
            yield f"{name}={spelled(value)}"
    section = RunConfig.model_fields.get(prefix.removesuffix("."))
    if section is not None:
        # Keys of today's schema keep their defaults; other keys are arguments of what is named.
        known = getattr(section.annotation, "model_fields", {})
        yield from (f"~{prefix}{key}" for key in base if key not in config and key not in known)


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in ELSEWHERE:
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def spelled(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        # Backslashes escape only quotes, and themselves in front of quotes.
        escaped = re.sub(r"(\\*)(?='|$)", r"\1\1", value).replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spelled, value)) + "]"
    return json.dumps(value)
