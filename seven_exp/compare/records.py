"""Reads the records of finished runs, including copied ones."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from seven_exp.compare.file_cache import FileCache
from seven_exp.compare.metrics import smaller_is_better
from seven_exp.config import Dataset, Model, Optimizer, Pruner
from seven_exp.files.stored_yaml import read_yaml
from seven_exp.runs.artifacts import SCHEMA

_DATA_DIR = "dataset.data_dir"
_VALIDATION = "dataset.validation"

_ELSEWHERE = (
    *("seed", "sparsity", "output_root", "cache_dir", "device", "threads", "plugins", "tracker"),
    "tuned",
    *("run", "analysis", "compare"),
    *(
        "model.name",
        "dataset.name",
        _DATA_DIR,
        "dataset.cache_dir",
        "dataset.download",
        "dataset.workers",
        "calibration.data_dir",
        "evaluation.include_path",
    ),
    *("pruner.name", "trainer.log_interval", "trainer.save_model", "trainer.sharding"),
)
"""Config keys that do not belong to the method, or are distinguished by other means."""

LENGTH = ("trainer.epochs", "trainer.max_steps")
"""Two ways to specify the length of training; a finished run's number of steps replaces both."""

_AXES = ("criterion", "when", "schedule", "scope", "pattern")

_NAMED: Mapping[str, type[BaseModel]] = {
    "model": Model,
    "dataset": Dataset,
    "pruner": Pruner,
    "optimizer": Optimizer,
}
"""Sections that hold the arguments of what they name, besides their own keys."""

_UNSET = "unset"

FINISHED = "finished"

_UNFINISHED = {"failed": "failed", "running": "still running", "interrupted": "interrupted"}
"""Status of a run without a result -> its description."""

_MADE_BY = ("versions", "device", "git", "host", "processor")
"""Facts of a record about where a run was executed."""


@dataclass(frozen=True)
class Record:
    """A run that has ended.

    Attributes:
        folder: Its folder.
        written: When it ended, seconds since the epoch: the record's own date, or the file's if an
            older record has none.
        status: "finished", or how it ended without a result.
        run_hash: Its identity.
        pruner: Its name.
        model: Its name.
        dataset: Its name.
        seed: The run's seed.
        sparsity: Target, in [0, 1); 0 if nothing was pruned.
        kept: Number of nonzero prunable weights.
        zeros: Fraction of all parameters that are zero; None if unknown.
        test_examples: Size of the test set; None if unknown.
        seconds: Duration of training.
        flops: Operations of one example's forward pass without pruned weights; None if unknown.
        files: Config key of a place -> fingerprint of the user's own files there; published sets
            have none.
        metrics: Final metrics, the finite ones; empty unless the run has finished.
        measured: "QUANTITY.VARIANT" -> what ``seven-exp measure`` found: ``latency`` in
            milliseconds, ``throughput`` in examples per second, ``bytes``.
        settings: The other settings that determine the result: dotted key -> value as on the
            command line.
        values: The complete ``results.json``.
    """

    folder: Path
    written: float
    status: str
    run_hash: str
    pruner: str
    model: str
    dataset: str
    seed: int
    sparsity: float
    kept: int
    zeros: float | None
    test_examples: int | None
    seconds: float
    flops: float | None
    files: Mapping[str, str]
    metrics: Mapping[str, float]
    settings: Mapping[str, str]
    values: Mapping[str, Any]
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def task(self) -> tuple[str, str]:
        """(model, dataset)."""
        return self.model, self.dataset


_UNREADABLE = "unreadable"


def read_runs(
    folders: Iterable[Path], cache: FileCache | None = None
) -> tuple[list[Record], list[str]]:
    """All runs below some folders that have ended, and a description of what was left out.

    A run found twice (by its hash) counts once, with its newest record, or its finished one.

    Args:
        folders: Searched recursively.
        cache: Keeps records that haven't changed since an earlier read.
    """
    cache = cache or FileCache()
    found: dict[str, Record] = {}
    later: dict[str, Mapping[str, Any]] = {}
    left_out: Counter[str] = Counter()
    broken: list[str] = []
    paths = {p.resolve(): p for folder in folders for p in sorted(folder.rglob("results.json"))}
    for path in paths.values():
        try:
            record = cache.read(path, _read)
        except OSError:
            record = _UNREADABLE
        if isinstance(record, str):
            left_out[record] += 1
            broken += [str(path)] if record == _UNREADABLE else []
            continue
        if record.status != FINISHED:
            left_out[_UNFINISHED[record.status]] += 1
        if measured := cache.whole(record.folder / "measure.json", _read_measured):
            record = replace(record, measured=measured)
        if accuracies := cache.whole(record.folder / "harness.json", _read_accuracies):
            later[record.run_hash] = accuracies
        other = found.get(record.run_hash)
        # A run that was found finished elsewhere has its record in two folders.
        if (
            other is not None
            and other.values != record.values
            and FINISHED == other.status == record.status
        ):
            left_out["done twice (the newest is kept)"] += 1
        if other is None or _rank(record) >= _rank(other):
            found[record.run_hash] = record
    notes = [f"{n} {kind}" for kind, n in sorted(left_out.items()) if kind != _UNREADABLE]
    if broken:
        notes.append(f"{len(broken)} {_UNREADABLE}: {', '.join(broken)}")
    return [_evaluated(record, later.get(record.run_hash)) for record in found.values()], notes


def _read_measured(path: Path) -> dict[str, float]:
    """What ``seven-exp measure`` wrote beside a record.

    Raises:
        OSError: The file can't be read.
        ValueError: It is no measurement.
    """
    try:
        found = {}
        for variant in json.loads(path.read_bytes())["variants"]:
            name = variant["name"].replace(" ", "_")
            found[f"latency.{name}"] = 1000 * float(variant["latency"]["median"])
            found[f"throughput.{name}"] = float(variant["examples_per_second"])
            found[f"bytes.{name}"] = float(variant["bytes"])
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a measurement: {error!r}") from error
    return found


def _read_accuracies(path: Path) -> dict[str, Any]:
    """What ``seven-exp measure --tasks`` wrote beside a record.

    Raises:
        OSError: The file can't be read.
        ValueError: It holds no accuracies.
    """
    try:
        values = json.loads(path.read_bytes())
        metrics = {name: float(value) for name, value in values["metrics"].items()}
        return {"metrics": metrics, "departures": list(values["departures"])}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no accuracies: {error!r}") from error


def _evaluated(record: Record, later: Mapping[str, Any] | None) -> Record:
    """A record with accuracies that were measured after its run."""
    if later is None:
        return record
    departures = [*(record.values.get("departures") or ()), *later["departures"]]
    return replace(
        record,
        metrics={**record.metrics, **later["metrics"]},
        values={**record.values, "departures": list(dict.fromkeys(departures))},
    )


def cautions(records: Collection[Record], metric: str) -> list[str]:
    """What a reader of a comparison by this metric must know of its runs, one line each."""
    return [line for line in (_turned(records, metric), _measured_early(records)) if line]


def _turned(records: Iterable[Record], metric: str) -> str | None:
    """One line if the runs and the metric's name differ about which values are better."""
    lower = smaller_is_better(metric)
    own = [record.values for record in records if record.values.get("metric") == metric]
    said = {values.get("lower_is_better", lower) for values in own}
    if said <= {lower}:
        return None
    here, there = ("lower", "higher") if lower else ("higher", "lower")
    advice = "" if lower else f" such as error_{metric}"
    return (
        f"{here} values of {metric} are taken for better because of its name, and the runs' task "
        f"says that {there} ones are: give the metric another name{advice}"
    )


def _measured_early(records: Iterable[Record]) -> str | None:
    """One line about finished runs that also measured the test split during training, if any."""
    old = sum(r.status == FINISHED and not _validated(r.values) for r in records)
    if not old:
        return None
    return (
        f"{old} of the runs had no validation split: they trained on all training data, and "
        "measured the test split during training, too"
    )


def _validated(values: Mapping[str, Any]) -> bool:
    """Whether a record says which split its figures are of; older ones had no validation split."""
    return "splits" in values


def _rank(record: Record) -> tuple[bool, float]:
    """Among the records of a run, the one with the highest rank counts."""
    return record.status == FINISHED, record.written


def differing_settings(records: Sequence[Record]) -> list[dict[str, str]]:
    """For each record the settings that distinguish it from others, except the seed.

    Pruning settings are compared among the runs of one pruner, because different pruners have
    different settings. All others (optimizer, steps, ...) are compared among all runs on one model
    and data set. The user's own data are distinguished by their fingerprint, and labelled by their
    path. A setting that only some records have distinguishes none unless these differ in it, and a
    setting that a run never reads does not describe it.

    Returns:
        Dotted key -> value as on Hydra's command line, in the order of ``records``.
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
        | {
            key: names[r.files.get(key)]
            for key, names in places[r.task].items()
            if key.partition(".")[0] not in _unread(r.values)
        }
        for r in records
    ]


def is_of_pruning(key: str) -> bool:
    """Whether a dotted config key, or a record's key, belongs to the pruning method."""
    return key in _AXES or key.startswith(("pruner.", "schedule."))


def whole_config(record: Record) -> dict[str, str]:
    """Dotted key -> value of everything known about a run, including versions and device."""
    made_by = {key: record.values[key] for key in _MADE_BY if key in record.values}
    return spelled([*_config(record.values, record.folder), *_flatten(made_by)])


def spelled(config: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Values in the syntax of the command line."""
    return {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in config}


def _read(path: Path) -> Record | str:
    """A record, or a few words about why there is none."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return _UNREADABLE
    if not isinstance(values, dict):
        return "foreign"
    if isinstance(schema := values.get("schema"), int) and schema > SCHEMA:
        return "of a newer version"
    status = values.get("status")
    if status != FINISHED and status not in tuple(_UNFINISHED):
        return "foreign"
    try:
        return _record(path, values)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        # For a run without a result, only the status is used.
        return _UNFINISHED.get(status, "foreign")


def _record(path: Path, values: Mapping[str, Any]) -> Record:
    """The record from the content of ``results.json``.

    Raises:
        OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError: It is not a record.
    """
    status = values["status"]
    sparsity = 0.0 if values.get("sparsity") == 0 else float(values["sparsity_target"])
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity_target is {sparsity}")
    if not all(isinstance(layer, Mapping) for layer in values.get("layers") or ()):
        raise TypeError("layers are not mappings")
    return Record(
        folder=path.parent,
        written=_ended(values) or path.stat().st_mtime,
        status=status,
        run_hash=str(values["run_hash"]),
        pruner=str(values["pruner"]),
        model=str(values["model"]),
        dataset=str(values["dataset"]),
        seed=int(values["seed"]),
        sparsity=sparsity,
        kept=int(values["params_nonzero"]),
        zeros=_zeros(values),
        test_examples=_whole(values.get("test_examples")),
        seconds=float(values["seconds"]),
        flops=finite(values.get("flops_sparse")),
        files=_files(values),
        metrics={k: v for k, raw in _results(values).items() if (v := finite(raw)) is not None},
        settings=spelled(_settings(values, path.parent)),
        values=values,
    )


def _results(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Final metrics; measurements during training are not results."""
    metrics: Mapping[str, Any] = values["metrics"] if values["status"] == FINISHED else {}
    return metrics


def _ended(values: Mapping[str, Any]) -> float | None:
    """When a run ended, from its record, because copying changes a file's own date."""
    try:
        date = datetime.fromisoformat(values["ended"])
    except (KeyError, TypeError, ValueError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _zeros(values: Mapping[str, Any]) -> float | None:
    """Zeros among all parameters; if a record doesn't count them, those of its masks."""
    counted = finite(values.get("zeros_total"))
    total = finite(values.get("params_total"))
    prunable = finite(values.get("params_prunable"))
    if counted is not None or not total or prunable is None:
        return counted
    return (prunable - int(values["params_nonzero"])) / total


def finite(value: object) -> float | None:
    """A number as a float; None for anything else, or if it is not finite."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whole(value: object) -> int | None:
    """A count; None for anything else."""
    return value if isinstance(value, int) and value > 0 else None


def _settings(values: Mapping[str, Any], folder: Path) -> Iterable[tuple[str, Any]]:
    """Dotted keys of the config and the record that can distinguish two methods."""
    hidden = {*_ELSEWHERE, *_unread(values)}
    if values["status"] != FINISHED:
        # Its number of steps says how far it got, not how long it should train.
        hidden.update(LENGTH)
    elif values.get("steps") is not None:
        yield "steps", values["steps"]
        hidden.update(LENGTH)
    below = tuple(f"{key}." for key in hidden)
    for key, value in _config(values, folder):
        if key not in hidden and not key.startswith(below):
            yield key, value
    if not _validated(values):
        yield _VALIDATION, 0.0


def _config(values: Mapping[str, Any], folder: Path) -> Iterable[tuple[str, Any]]:
    """Dotted key and value of a run's config; of the oldest records, what there is of it."""
    config = values.get("config") or read_yaml(folder / ".hydra" / "config.yaml")
    return _flatten(config or {key: values.get(key) for key in _AXES})


def _unread(values: Mapping[str, Any]) -> Sequence[str]:
    """Config keys that a run never read, according to its record; none in older records."""
    return values.get("unread") or ()


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tells(key: str) -> bool:
    """Whether a record without this key used a default value that its config doesn't show.

    This holds for arguments of models, pruners and the like. Any other key is in every config of
    its version, so an older record that lacks it gives no information.
    """
    section, _, name = key.partition(".")
    schema = _NAMED.get(section)
    return schema is not None and name not in schema.model_fields


def _files(values: Mapping[str, Any]) -> dict[str, str]:
    """Config key of a place -> fingerprint of the user's own files there."""
    files = {_DATA_DIR: values.get("data_files"), **(values.get("other_files") or {})}
    return {key: str(own) for key, own in files.items() if own is not None}


def _places(records: Sequence[Record]) -> dict[str, dict[str | None, str]]:
    """For each config key whose files distinguish records: fingerprint -> name of the place."""
    found: dict[str, dict[str | None, str]] = {}
    for key in sorted({key for record in records for key in record.files}):
        first = {r.files[key]: r for r in reversed(records) if key in r.files}
        if len(first) < 2:
            continue
        places = {files: whole_config(r).get(key, _UNSET) for files, r in first.items()}
        shared = Counter(places.values())
        found[key] = {None: _UNSET} | {
            files: place if shared[place] == 1 else f"{place} ({files})"
            for files, place in places.items()
        }
    return found


def _differing(records: Sequence[Record], *, of_pruning: bool) -> list[str]:
    keys = {
        key for record in records for key in record.settings if is_of_pruning(key) == of_pruning
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
