"""A run's identity: everything that determines its result, and nothing else."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from seven_exp.config import Calibration, RunConfig
from seven_exp.files.hashing import hash_of
from seven_exp.runs.artifacts import SCHEMA
from seven_exp.runs.plugins import content_of, load_plugins, matters
from seven_exp.runs.reads import Pruning, unread

RESULTS = 2
"""Raise this when the same config gives other results than before; every run is then repeated."""

START = ("model", "dataset", "optimizer", "lr_schedule")
"""Kinds of registered things that determine the result of dense training."""

PLACES = {"data_dir", "cache_dir", "download", "workers"}
"""Keys of a data set that say where it is or how it is read, not what it contains."""

_PLACES, _PIECE = 16, 4096
"""Places at which a model's file is read to tell it from others, and bytes of each."""


def run_hash(config: RunConfig) -> str:
    """Twelve hex digits of `run_identity`."""
    return digest(run_identity(config))


def run_identity(config: RunConfig) -> dict[str, Any]:
    """Everything that determines a run's result.

    That is the config without paths, logging, analysis, comparison, device, sharding and ``run``,
    without the keys that the run never reads (see `unread`) and those that have no effect at their
    value (they have a default in the schema); the content of the user's files that it names; and
    `RESULTS`.
    The dense reference also omits everything that only pruning reads.

    Args:
        config: A checked config.

    Raises:
        ConfigError: A plugin can't be imported.
        OSError: A file that the config names can't be read.
    """
    load_plugins(config.plugins)
    pruning = Pruning.of(config)
    identity = config.model_dump(
        exclude={
            **dict.fromkeys(
                (
                    *("output_root", "cache_dir", "device", "threads", "plugins", "tuned"),
                    *("tracker", "analysis", "compare", "run"),
                ),
                True,
            ),
            "trainer": {"log_interval", "save_model", "sharding"},
        },
        exclude_defaults=True,
    )
    identity["version"] = [RESULTS, SCHEMA, *_corrections(config, pruning)]
    identity["model"], identity["dataset"] = model_identity(config), data_identity(config)
    if config.calibration is None:
        del identity["calibration"]  # older runs have no such key
    else:
        identity["calibration"] = _calibration_identity(config.calibration)
    if (place := config.evaluation.include_path) is not None:
        identity["evaluation"]["include_path"] = _content_below(Path(place).expanduser())
    identity["pruner"] |= pruning.chosen
    identity["sparsity"] = config.sparsity if pruning.prunes else 0.0
    ignored = unread(pruning)
    for key in ignored:
        *path, last = key.split(".")
        reduce(getitem, path, identity).pop(last, None)
    others = ["metric", "pruner"]
    if pruning.prunes:
        others += ["scope"] if "schedule.name" in ignored else ["scope", "schedule"]
    identity["plugins"] = plugins_identity(config, *START, *others)
    return identity


def _corrections(config: RunConfig, pruning: Pruning) -> list[str]:
    """Corrections that changed the results of some runs: these alone are repeated."""
    from seven_exp.pruning import Solver, build_method
    from seven_exp.pruning.criteria.dsnot import DSnoT
    from seven_exp.pruning.criteria.lamp import Lamp
    from seven_exp.pruning.criteria.obert import Obert
    from seven_exp.pruning.method import starts_sparse
    from seven_exp.pruning.patterns import Units, parse_pattern
    from seven_exp.pruning.rules import Threshold

    method = build_method(config.pruner.name, config.pruner.arguments)
    walks = pruning.prunes and isinstance(method, Solver) and config.trainer.precision != "fp32"
    rows = pruning.prunes and pruning.scope == "per_row"
    moved = pruning.in_training and isinstance(getattr(method, "score", None), Lamp | Obert)
    skips = pruning.prunes and isinstance(method, DSnoT) and not method.everywhere
    apart = pruning.in_training and isinstance(getattr(method, "rule", None), Threshold)
    units = isinstance(parse_pattern(config.pruner.pattern), Units)
    exchanges = units and pruning.in_training and starts_sparse(method)
    found = {
        "autocast of walks": walks,
        "counts of rows": rows,
        "moved pruned weights": moved,
        "layers of exchanges": skips,
        "exchanges of units": exchanges,
        "thresholds of layers": apart
        and (pruning.scope != "global" or bool(config.pruner.sparsities)),
    }
    return [name for name, concerned in found.items() if concerned] + corrections_of_dense(config)


def corrections_of_dense(config: RunConfig) -> list[str]:
    """Corrections that changed the results of dense training, and so of these runs."""
    from seven_exp.datasets import text_head
    from seven_exp.models.hub import is_source

    # A model that is not listed may be a decoder.
    classifies = is_source(config.model.name) and text_head(config.dataset.name) == "classification"
    return ["padding of decoders"] if classifies else []


def model_identity(config: RunConfig) -> dict[str, Any]:
    """The model's config, with files identified by their content, because a path can be reused."""
    identity = config.model.model_dump(exclude_defaults=True)
    if config.model.checkpoint is not None:
        identity["checkpoint"] = hash_of(Path(config.model.checkpoint).expanduser())
    identity["name"] = _content_of(config.model.name)
    return identity


def _content_of(name: str) -> str:
    """A model's name, or for a local folder a digest of its files, because a path can be reused."""
    place = Path(name).expanduser()
    if "/" not in name or not place.is_dir():
        return name
    return digest({"files": fingerprint(place), "samples": _samples(place)})


def _samples(folder: Path) -> dict[str, str]:
    """For each file below a folder the SHA-256 of a few places, evenly spread.

    Two trainings of a model differ almost everywhere, but not in their names and sizes.
    """
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size, places = path.stat().st_size, hashlib.sha256()
        with path.open("rb") as file:
            for i in range(_PLACES):
                file.seek(max(0, size - _PIECE) * i // (_PLACES - 1))
                places.update(file.read(_PIECE))
        found[path.relative_to(folder).as_posix()] = places.hexdigest()
    return found


def data_identity(config: RunConfig) -> dict[str, Any]:
    """The data set's config without its location, and the fingerprint of its files.

    A published data set is identified by its name.
    """
    from seven_exp.datasets import DATASETS

    identity = config.dataset.model_dump(exclude=PLACES, exclude_defaults=True)
    if isinstance(tokenizer := identity.get("tokenizer"), str):
        identity["tokenizer"] = _content_of(tokenizer)
    known_by = DATASETS[config.dataset.name].known_by
    data_dir = config.dataset.arguments.get("data_dir")
    if known_by != "name" and data_dir is not None:
        place = Path(str(data_dir)).expanduser()
        identity["files"] = fingerprint(place)
        if known_by == "place":
            # Arrays of one shape have files of one size, so their content counts.
            content = hash_of(place) if place.is_file() else identity["files"]
            identity["files"] = digest({"place": str(place.resolve()), "files": content})
    return identity


def _calibration_identity(section: Calibration) -> dict[str, Any]:
    """The calibration's config without its location, and the fingerprint of its files."""
    identity = section.model_dump(exclude={"data_dir"})
    if section.data_dir is not None:
        place = Path(section.data_dir).expanduser()
        identity["files"] = hash_of(place) if place.is_file() else fingerprint(place)
    return identity


def _content_below(folder: Path) -> str:
    """Twelve hex digits of the names and contents of all files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return digest({path.relative_to(folder).as_posix(): hash_of(path) for path in files})


def plugins_identity(config: RunConfig, *kinds: str) -> list[str]:
    """The content of each plugin that contributes to what the config names of these kinds.

    Raises:
        ConfigError: A plugin can't be imported.
        OSError: A plugin can't be read.
    """
    from seven_exp.pruning import PRUNERS

    load_plugins(config.plugins)
    names = {
        "model": config.model.name,
        "dataset": config.dataset.name,
        "optimizer": config.optimizer.name,
        "lr_schedule": config.optimizer.lr_schedule,
        "pruner": config.pruner.name,
        "schedule": config.schedule.name,
        "scope": config.pruner.scope or PRUNERS[config.pruner.name].scope,
    }
    used = [(kind, names[kind]) for kind in kinds if kind in names]
    if "dataset" in kinds:
        used += [("transform", name) for name in config.dataset.transforms or ()]
    if "metric" in kinds:
        used += [("metric", name) for name in config.dataset.metrics]
    return [content_of(plugin) for plugin in config.plugins if matters(plugin, used)]


def fingerprint(folder: Path) -> str:
    """Twelve hex digits of the names and sizes of all files below a folder.

    Their content is not read, which would take longer than many runs. A file that is replaced by
    another one of the same size is not detected.
    """
    folder = folder.expanduser()
    sizes: dict[str, int] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        # Strings: one path object per file would dominate the time of this function.
        inside = Path(parent).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in names:
            sizes[prefix + name] = os.stat(f"{parent}/{name}").st_size  # noqa: PTH116
    return digest(sizes)


def digest(identity: Mapping[str, Any]) -> str:
    """Twelve hex digits of a JSON-like mapping, independent of the order of its keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
