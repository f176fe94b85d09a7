"""Numbers that can be an axis: costs, metrics, measurements, and numeric settings that differ."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from seven_exp.compare.metrics import COSTS, MEASURED, bounds, in_percent, smaller_is_better
from seven_exp.compare.records import Record
from seven_exp.compare.statistics import estimate
from seven_exp.compare.summary import Row, step_of
from seven_exp.compare.table import percent

_MORE_IS_BETTER = ("sparsity", "zeros", "throughput")


def axes(records: Iterable[Record]) -> dict[str, str]:
    """Name -> title of what differs in number between the records."""
    records = list(records)
    metrics = dict.fromkeys(name for record in records for name in record.metrics)
    measured = dict.fromkeys(name for record in records for name in record.measured)
    settings = sorted({key for record in records for key in record.settings} - metrics.keys())
    titles = COSTS | {name: f"{name}, %" if in_percent(name) else name for name in metrics}
    for name in measured:
        what, _, variant = name.partition(".")
        titles[name] = f"{MEASURED[what]} ({variant})"
    for name in settings:
        if len({number(record, name) for record in records} - {None}) > 1:
            titles[name] = name
    return titles


def is_setting(name: str, records: Iterable[Record]) -> bool:
    """Whether an axis is a setting, which distinguishes methods elsewhere."""
    return name not in COSTS and any(name in record.settings for record in records)


def direction(name: str, records: Iterable[Record]) -> int:
    """1 if more is better on an axis, -1 if less is, 0 for a setting."""
    records = list(records)
    if is_setting(name, records):
        return 0
    if any(name in record.metrics for record in records):
        return -1 if smaller_is_better(name) else 1
    return 1 if name.partition(".")[0] in _MORE_IS_BETTER else -1


def number(record: Record, name: str) -> float | None:
    """The record's value on an axis; None if it has no finite one."""
    value: float | str | None
    if name in COSTS:
        value = getattr(record, name)
    elif name in record.metrics:
        value = record.metrics[name]
    else:
        value = record.measured.get(name, record.settings.get(name))
    try:
        found = math.nan if value is None else float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(row: Row, name: str) -> dict[int, float]:
    """Seed -> value of a row's runs on an axis."""
    values = {record.seed: number(record, name) for record in row.records}
    return {seed: value for seed, value in values.items() if value is not None}


def place(row: Row, name: str) -> float | None:
    """The mean of a row's runs on an axis."""
    known = numbers(row, name).values()
    return math.fsum(known) / len(known) if known else None


def with_results(rows: Iterable[Row], name: str) -> list[Row]:
    """Rows whose results are their values on an axis; without those that have none."""
    found = [(row, numbers(row, name)) for row in rows]
    return [
        replace(
            row,
            by_seed=values,
            result=estimate(list(values.values()), step_of(row.records, name) or 0.0),
            difference=None,
        )
        for row, values in found
        if values
    ]


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
    bounded = math.isfinite(bounds(name)[1])
    return bool(known) and not bounded and min(known) > 0 and max(known) > 16 * min(known)


def front(points: Iterable[tuple[float, float]], x: int, y: int) -> list[tuple[float, float]]:
    """The Pareto front: points that no other one beats on one axis without losing on the other.

    Args:
        points: Any.
        x: `direction` of the first axis, not 0.
        y: `direction` of the second.

    Returns:
        From the best on the first axis to the best on the second.
    """
    found: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda p: (-x * p[0], -y * p[1])):
        if not found or y * point[1] > y * found[-1][1]:
            found.append(point)
    return found
