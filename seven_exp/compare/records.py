"""Reading the records of finished runs, wherever they were copied from."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from seven_exp.compare.file_cache import FileCache
from seven_exp.config import Dataset, Model, Optimizer, Pruner
from seven_exp.runs import SCHEMA

if TYPE_CHECKING:
    from pandas import DataFrame

_DATA_DIR = "dataset.data_dir"

_ELSEWHERE = (
    *("seed", "sparsity", "output_root", "cache_dir", "device", "threads", "plugins", "tracker"),
    *("run", "analysis"),
    *(
        "model.name",
        "dataset.name",
        _DATA_DIR,
        "dataset.cache_dir",
        "dataset.download",
        "dataset.workers",
    ),
    *("pruner.name", "trainer.log_interval", "trainer.save_model"),
)
"""Keys of a run's config that say nothing of its method, or are told apart by other means."""

_LENGTH = ("trainer.epochs", "trainer.max_steps")
"""Two ways to say how long to train; a finished run's number of steps says it for both."""

_AXES = ("criterion", "when", "schedule", "scope", "pattern")

_NAMED: Mapping[str, type[BaseModel]] = {
    "model": Model,
    "dataset": Dataset,
    "pruner": Pruner,
    "optimizer": Optimizer,
}
"""Sections that hold the arguments of what they name, beside keys of their own."""

_UNSET = "unset"

_REASONS = {"failed": "failed", "running": "still running", "interrupted": "interrupted"}


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        folder: Where it lies.
        written: When its record was written, seconds since the epoch.
        run_hash: Its identity.
        pruner: Its name.
        model: Its name.
        dataset: Its name.
        seed: Of everything random.
        sparsity: Target, in [0, 1).
        kept: Number of nonzero prunable weights.
        seconds: Of training.
        flops: Operations of one example's forward pass, pruned weights left out; None if unknown.
        data_files: What tells its data from others of the name; None for a published set.
        metrics: Final figures, the finite ones.
        settings: What else decided the result: dotted key -> value as the command line spells it.
        values: All of ``results.json``.
    """

    folder: Path
    written: float
    run_hash: str
    pruner: str
    model: str
    dataset: str
    seed: int
    sparsity: float
    kept: int
    seconds: float
    flops: float | None
    data_files: str | None
    metrics: Mapping[str, float]
    settings: Mapping[str, str]
    values: Mapping[str, Any]

    @property
    def task(self) -> tuple[str, str]:
        """(model, dataset)."""
        return self.model, self.dataset


def read_records(
    folders: Iterable[Path], cache: FileCache | None = None
) -> tuple[list[Record], list[str]]:
    """All finished runs below some folders, and words for each kind that was left out.

    A run found twice (by its hash) is taken once, its newest record.

    Args:
        folders: Searched as deep as they go.
        cache: Spares records that haven't changed since they were last read through it.
    """
    cache = cache or FileCache()
    found: dict[str, Record] = {}
    left_out: Counter[str] = Counter()
    paths = {p.resolve(): p for folder in folders for p in sorted(folder.rglob("results.json"))}
    for path in paths.values():
        try:
            record = cache.read(path, _read)
        except OSError:
            record = "unreadable"
        if isinstance(record, str):
            left_out[record] += 1
            continue
        other = found.get(record.run_hash)
        # A run that was found done elsewhere has its record in two folders.
        if other is not None and other.values != record.values:
            left_out["done twice (the newest is kept)"] += 1
        if other is None or record.written >= other.written:
            found[record.run_hash] = record
    notes = [f"{n} {kind}" for kind, n in sorted(left_out.items())]
    return list(found.values()), notes


def differing_settings(records: Sequence[Record]) -> list[dict[str, str]]:
    """For each record the settings that tell it from others, seeds apart.

    What belongs to pruning is compared among the runs of one pruner, since pruners differ there by
    nature; all the rest (optimizer, steps, ...) among all runs on one model and data set. Files of
    the user's own are told apart by what they hold, and called by where they lie. A setting that
    only some records know tells none apart unless these differ in it, and one that a run never
    reads says nothing of it.

    Returns:
        Dotted key -> value as Hydra's command line spells it, in the order of ``records``.
    """
    tasks: dict[object, list[Record]] = defaultdict(list)
    pruners: dict[object, list[Record]] = defaultdict(list)
    for record in records:
        tasks[record.task].append(record)
        pruners[record.task, record.pruner].append(record)
    shared = {task: _differing(group, of_pruning=False) for task, group in tasks.items()}
    own = {kind: _differing(group, of_pruning=True) for kind, group in pruners.items()}
    places = {task: _places(group) for task, group in tasks.items()}
    return [
        {
            key: r.settings.get(key, _UNSET)
            for key in own[r.task, r.pruner] + shared[r.task]
            if key not in _unread(r.values)
        }
        | places[r.task].get(r.data_files, {})
        for r in records
    ]


def runs_frame(records: Sequence[Record]) -> "DataFrame":
    """One row for each run, for analyses of one's own.

    Columns: the record's scalars, every final metric under its name, every best one under
    ``best_`` and its name, and ``folder``.
    """
    import pandas as pd

    columns = (
        *("pruner", "model", "dataset", *_AXES, "sparsity_target", "sparsity", "seed"),
        *("params_total", "params_prunable", "params_nonzero", "flops_dense", "flops_sparse"),
        *("steps", "seconds", "seconds_pruning", "run_hash"),
    )
    return pd.DataFrame(
        {
            **{key: record.values.get(key) for key in columns},
            **record.metrics,
            **{f"best_{key}": value for key, value in (record.values.get("best") or {}).items()},
            "folder": str(record.folder),
        }
        for record in records
    )


def whole_config(record: Record) -> dict[str, str]:
    """Dotted key -> value of all that is known of how a run was made, versions and device too."""
    values = record.values
    config = values.get("config") or _hydra_config(record.folder)
    made_by = {key: values[key] for key in ("versions", "device", "git") if key in values}
    return spelled(_flatten({**(config or {key: values.get(key) for key in _AXES}), **made_by}))


def spelled(config: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Values as the command line spells them."""
    return {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in config}


def _read(path: Path) -> Record | str:
    """A record, or in few words why there is none."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return "unreadable"
    if not isinstance(values, dict):
        return "foreign"
    if isinstance(schema := values.get("schema"), int) and schema > SCHEMA:
        return "of a newer version"
    if values.get("status") != "finished":
        return _REASONS.get(str(values.get("status")), "foreign")
    flops = values.get("flops_sparse")
    try:
        record = Record(
            folder=path.parent,
            written=path.stat().st_mtime,
            run_hash=str(values["run_hash"]),
            pruner=str(values["pruner"]),
            model=str(values["model"]),
            dataset=str(values["dataset"]),
            seed=int(values["seed"]),
            sparsity=float(values["sparsity_target"]),
            kept=int(values["params_nonzero"]),
            seconds=float(values["seconds"]),
            flops=float(flops) if flops is not None and _is_finite(flops) else None,
            data_files=values.get("data_files"),
            metrics={k: float(v) for k, v in values["metrics"].items() if _is_finite(v)},
            settings=spelled(_settings(values, path.parent)),
            values=values,
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return "foreign"
    return record if 0 <= record.sparsity < 1 else "foreign"


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _settings(values: Mapping[str, Any], folder: Path) -> Iterable[tuple[str, Any]]:
    """Dotted keys of the config and of the record that tell two methods apart."""
    hidden = {*_ELSEWHERE, *_unread(values)}
    if values.get("steps") is not None:
        yield "steps", values["steps"]
        hidden.update(_LENGTH)
    below = tuple(f"{key}." for key in hidden)
    config = values.get("config") or _hydra_config(folder)
    for key, value in _flatten(config or {key: values.get(key) for key in _AXES}):
        if key not in hidden and not key.startswith(below):
            yield key, value


def _unread(values: Mapping[str, Any]) -> Sequence[str]:
    """Keys of its config that a run never read, as its record says; older records say nothing."""
    return values.get("unread") or ()


def _hydra_config(folder: Path) -> Mapping[str, Any] | None:
    """The config that Hydra left beside a record which does not hold its own."""
    import yaml  # type: ignore[import-untyped]

    try:
        text = (folder / ".hydra" / "config.yaml").read_text(encoding="utf-8")
        config = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return config if isinstance(config, dict) else None


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tells(key: str) -> bool:
    """Whether a record without this key had another value: a default that the config doesn't show.

    So it is with arguments of models, pruners and the like. Any other key is in every config of its
    version, and an older record that lacks it says nothing.
    """
    section, _, name = key.partition(".")
    schema = _NAMED.get(section)
    return schema is not None and name not in schema.model_fields


def _places(records: Sequence[Record]) -> dict[str | None, dict[str, str]]:
    """For the files of each record the setting that tells them from the others', if any does."""
    first = {r.data_files: r for r in reversed(records) if r.data_files is not None}
    if len(first) < 2:
        return {}
    places = {files: whole_config(r).get(_DATA_DIR, _UNSET) for files, r in first.items()}
    shared = Counter(places.values())
    names: dict[str | None, str] = {
        files: place if shared[place] == 1 else f"{place} ({files})"
        for files, place in places.items()
    }
    return {files: {_DATA_DIR: name} for files, name in ({None: _UNSET} | names).items()}


def _differing(records: Sequence[Record], *, of_pruning: bool) -> list[str]:
    keys = {
        key
        for record in records
        for key in record.settings
        if (key in _AXES or key.startswith(("pruner.", "schedule."))) == of_pruning
    }
    return sorted(
        key
        for key in keys
        if len(
            {
                r.settings.get(key, _UNSET)
                for r in records
                if key in r.settings or (_tells(key) and key not in _unread(r.values))
            }
        )
        > 1
        and not (key.endswith(".seed") and all(r.settings.get(key) == str(r.seed) for r in records))
    )
