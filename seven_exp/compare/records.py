"""Reading the records of finished runs."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ELSEWHERE = (
    *("seed", "sparsity", "output_root", "cache_dir", "device", "threads", "plugins", "tracker"),
    *("model.name", "dataset.name", "dataset.data_dir", "dataset.download", "pruner.name"),
    *("trainer.log_interval", "trainer.save_model"),
)
"""Keys of a run's config that say nothing of its method, or are told apart by other means."""


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        folder: Where it lies.
        values: ``results.json``.
        settings: What else decided the result, as dotted keys.
    """

    folder: Path
    values: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def task(self) -> tuple[str, str]:
        """(model, dataset)."""
        return self.values["model"], self.values["dataset"]


def read_records(folders: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """All finished runs below some folders, and a line for each kind that was left out.

    A run found twice (by its hash) is taken once, its newest record.
    """
    found: dict[str, tuple[float, Record]] = {}
    left_out: Counter[str] = Counter()
    for path in sorted({p for folder in folders for p in folder.rglob("results.json")}):
        try:
            values = json.loads(path.read_text())
            status = values["status"]
            record = Record(path.parent, values, dict(_settings(values)))
            key = values["run_hash"]
            _ = record.task, values["pruner"], values["sparsity_target"], values["seed"]
        except (OSError, ValueError, KeyError, TypeError):
            left_out["unreadable"] += 1
            continue
        if status != "finished":
            left_out[status] += 1
            continue
        written = path.stat().st_mtime
        if key in found:
            left_out["done twice"] += 1
        if key not in found or written > found[key][0]:
            found[key] = (written, record)
    notes = [f"left out: {n} {kind}" for kind, n in sorted(left_out.items())]
    return [record for _, record in found.values()], notes


def labels(records: Sequence[Record]) -> list[str]:
    """For each record its pruner's name and the settings that differ among that pruner's runs.

    Settings are compared within one model and data set; runs with the same label differ in seed
    and sparsity alone.
    """
    values: dict[tuple[str, str, str], dict[str, set[str]]] = {}
    for record in records:
        seen = values.setdefault(_kind(record), {})
        for key, value in record.settings.items():
            seen.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
    followers = {
        (kind, key)
        for kind, seen in values.items()
        for key in seen
        if key.endswith(".seed")
        and all(r.settings.get(key) == r.values["seed"] for r in records if _kind(r) == kind)
    }
    counts = Counter(_kind(record) for record in records)
    present = Counter((_kind(r), key) for r in records for key in r.settings)
    result = []
    for record in records:
        kind = _kind(record)
        differing = [
            f"{key}={record.settings.get(key)}"
            for key, options in sorted(values[kind].items())
            if (len(options) > 1 or present[kind, key] < counts[kind])
            and (kind, key) not in followers
        ]
        result.append(" ".join([record.values["pruner"], *differing]))
    return result


def _kind(record: Record) -> tuple[str, str, str]:
    return *record.task, record.values["pruner"]


def _settings(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Dotted keys of the config and of the record that tell two methods apart."""
    yield "steps", values.get("steps")
    config = values.get("config") or {key: values.get(key) for key in ("schedule", "scope")}
    for key, value in _flatten(config):
        if not any(key == other or key.startswith(f"{other}.") for other in _ELSEWHERE):
            yield key, value


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
