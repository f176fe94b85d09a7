"""Numbers that can be an axis: what a run cost, its metrics, and numeric settings that differ."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from seven_exp.compare.metrics import bounds, in_percent
from seven_exp.compare.records import Record
from seven_exp.compare.summary import Row
from seven_exp.compare.table import percent

_COSTS: Mapping[str, tuple[str, Callable[[Record], float | None]]] = {
    "sparsity": ("sparsity, % (spaced by log density)", lambda record: record.sparsity),
    "kept": ("kept parameters", lambda record: record.kept),
    "zeros": ("zeros of all parameters", lambda record: record.zeros),
    "flops": ("operations of a forward pass (FLOPs)", lambda record: record.flops),
    "seconds": ("seconds of training", lambda record: record.seconds),
}


def axes(records: Iterable[Record]) -> dict[str, str]:
    """Name -> title of what differs in number between the records."""
    records = list(records)
    metrics = dict.fromkeys(name for record in records for name in record.metrics)
    settings = sorted({key for record in records for key in record.settings} - metrics.keys())
    titles = {name: title for name, (title, _) in _COSTS.items()}
    titles |= {name: f"{name}, %" if in_percent(name) else name for name in metrics}
    for name in settings:
        if len({number(record, name) for record in records} - {None}) > 1:
            titles[name] = name
    return titles


def is_setting(name: str, records: Iterable[Record]) -> bool:
    """Whether an axis is a setting, which distinguishes methods elsewhere."""
    return name not in _COSTS and any(name in record.settings for record in records)


def number(record: Record, name: str) -> float | None:
    """The record's value on an axis; None if it has no finite one."""
    if name in _COSTS:
        value: float | str | None = _COSTS[name][1](record)
    else:
        value = record.metrics.get(name, record.settings.get(name))
    try:
        found = math.nan if value is None else float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def place(row: Row, name: str) -> float | None:
    """The mean of a row's runs on an axis."""
    known = [value for record in row.records if (value := number(record, name)) is not None]
    return math.fsum(known) / len(known) if known else None


def along(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows whose methods do not name the axis's setting, so that a method is a line along it.

    If there are several sparsities, each is a method.
    """
    if not is_setting(name, (record for row in rows for record in row.records)):
        return list(rows)
    several = len({row.sparsity for row in rows if row.sparsity > 0}) > 1
    return [replace(row, settings=_without(row, name, several)) for row in rows]


def _without(row: Row, name: str, several: bool) -> dict[str, str]:
    kept = {key: value for key, value in row.settings.items() if key != name}
    return kept | ({"sparsity": percent(row.sparsity)} if several and row.sparsity > 0 else {})


def wants_logarithm(values: Iterable[float], name: str) -> bool:
    """Whether values span more than a linear axis shows: four octaves, all positive."""
    known = list(values)
    bounded = any(map(math.isfinite, bounds(name)))
    return bool(known) and not bounded and min(known) > 0 and max(known) > 16 * min(known)
