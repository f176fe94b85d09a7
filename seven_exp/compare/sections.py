"""Converts records to the data of the page's sections; all statistics are computed here."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from seven_exp.compare import search
from seven_exp.compare.axes import along, axes, direction, is_setting, number, place, with_results
from seven_exp.compare.conclusions import Conclusions
from seven_exp.compare.file_cache import FileCache
from seven_exp.compare.history import read_history, thinned
from seven_exp.compare.inference import Inference
from seven_exp.compare.look import Look, ranking
from seven_exp.compare.metrics import bounds, in_percent, print_scale, smaller_is_better
from seven_exp.compare.page import Section, asset, on_grid, render, rounded
from seven_exp.compare.paper import budget
from seven_exp.compare.plot import as_svg, styles
from seven_exp.compare.records import (
    Record,
    cautions,
    differing_settings,
    finite,
    whole_config,
)
from seven_exp.compare.statistics import SIGNIFICANT, Difference, paired_difference
from seven_exp.compare.summary import Row, method_name, spans, summarize, with_differences
from seven_exp.compare.table import captions, seeds
from seven_exp.compare.why import explanations

MOST_DIFFERENCES = 40_000
"""Maximum number of differences on a page: rows times metrics times baselines."""

MOST_CURVE_VALUES = 250_000
"""Maximum number of training-curve values on a page."""

Place = tuple[tuple[str, str], str, float]
"""What identifies a row, whatever the metric: task, method, sparsity."""


def comparison_page(
    records: Sequence[Record],
    metric: str,
    baseline: str | None,
    notes: Sequence[str],
    link: Callable[[Path], str],
    cache: FileCache | None,
    conclusions: Conclusions,
) -> str:
    """The page as HTML.

    Args:
        records: At least one. Those without a result are counted in their rows.
        metric: Selected at first.
        baseline: Selected at first.
        notes: What was left out.
        link: Converts a run's file to an address that the page's reader can open.
        cache: Keeps files that haven't changed, and lists broken ones afterwards.
        conclusions: Of the metric, with the options of all tests.
    """
    cache, inference = cache or FileCache(), conclusions.inference
    records = sorted(records, key=lambda r: (r.task, r.pruner, r.sparsity, r.seed, str(r.folder)))
    settings = differing_settings(records)
    tables = _tables(records, metric, settings)
    offered, more = _baselines(tables, metric, baseline)
    shown = [
        (record, method_name(record.pruner, own))
        for record, own in zip(records, settings, strict=True)
        if record.metrics
    ]
    records, methods = [record for record, _ in shown], [method for _, method in shown]
    shared = {
        "significant": SIGNIFICANT,
        "metric": metric,
        "baseline": baseline,
        "paired": inference.differ is paired_difference,
        "family": inference.family,
        **_shared(records, methods, tables, link),
        "differences": _all_differences(tables, offered, inference),
    }
    answer, curves, *others = sections(records, methods, offered, more, cache)
    parts = [answer, *conclusions.sections(), curves, *_search(tables[metric], metric), *others]
    left_out = [*notes, *cache.broken_files()]
    lines = [f"{len(records)} runs.", *([f"Left out: {', '.join(left_out)}."] if left_out else [])]
    lines += [f"{caution}." for caution in cautions(records, metric)]
    return render(f"Comparison by {metric}", lines, shared, parts)


def sections(
    records: Sequence[Record],
    methods: Sequence[str],
    baselines: Sequence[str],
    more_baselines: int,
    cache: FileCache,
) -> list[Section]:
    """The page's sections in order. To add a section, append it here.

    Args:
        records: In the page's order: run i of its data is ``records[i]``.
        methods: Their names, one per record.
        baselines: The selectable baselines.
        more_baselines: Number of baselines that did not fit.
        cache: Reads files of a run's folder.
    """
    return [
        Section("answer", "Who wins", {"budgets": _budgets(records)}, asset("answer.js")),
        Section("curves", "Curves", {}, asset("curves.js"), CURVES_NOTE),
        Section(
            *("table", "Means and differences"),
            {"baselines": baselines, "more": more_baselines},
            asset("table.js"),
        ),
        Section("layers", "Sparsity of each layer", _layers(records), asset("layers.js")),
        Section("training", "Training", _training(records, cache), asset("training.js")),
        *explanations(records, methods, cache),
        Section("runs", "Runs", _configs(records), asset("runs.js")),
    ]


def _search(rows: Sequence[Row], metric: str) -> list[Section]:
    """What is known of the settings that were tried; nothing if there are few."""
    found = search.searches(rows, metric)
    if not found:
        return []
    picture = as_svg(search.draw(found))
    return [Section("search", "Settings", {}, picture, search.caption(found, Look()))]


CURVES_NOTE = (
    "Lines join means over seeds, bars are 95% Student t intervals of the mean, faint points are "
    "single seeds; at one sparsity methods stand side by side. Ringed points on the grey line are "
    "the Pareto front of the visible means: no other mean is better on one axis and at least as "
    "good on the other. Point at a mark for its values, or use the arrow keys."
)


def _tables(
    records: Sequence[Record], metric: str, settings: Sequence[Mapping[str, str]]
) -> dict[str, list[Row]]:
    """Metric -> its rows, without differences; the selected metric comes first."""
    names = Counter(name for record in records for name in record.metrics)
    order = sorted(names, key=lambda name: (name != metric, name))
    return {name: summarize(records, name, None, settings)[0] for name in order or [metric]}


def _baselines(
    tables: Mapping[str, Sequence[Row]], metric: str, baseline: str | None
) -> tuple[list[str], int]:
    """Pruners, and methods of pruners with several, as baselines; and how many don't fit."""
    methods = defaultdict(set)
    runs: Counter[str] = Counter()
    for row in (row for rows in tables.values() for row in rows):
        methods[row.pruner].add(row.method)
        for name in {row.pruner, row.method}:
            runs[name] += len(row.by_seed)
    single = {pruner for pruner, own in methods.items() if len(own) == 1}
    names = {*methods} | {name for pruner in methods.keys() - single for name in methods[pruner]}
    # Seed by seed, a single run allows no comparison that would need a choice.
    order = sorted(
        names, key=lambda name: (name != baseline, name not in methods, -runs[name], name)
    )
    rows = sum(map(len, tables.values()))
    kept = order[: max(1, MOST_DIFFERENCES // rows)]
    return sorted(kept), len(order) - len(kept)


def _rows(tables: Mapping[str, Sequence[Row]]) -> list[Row]:
    """One row for each (task, method, sparsity), in order, for all metrics."""
    places: dict[Place, Row] = {}
    for table in tables.values():
        for row in table:
            places.setdefault((row.task, row.method, row.sparsity), row)
    return [places[place] for place in sorted(places)]


def _index(rows: Sequence[Row]) -> dict[Place, int]:
    return {(row.task, row.method, row.sparsity): i for i, row in enumerate(rows)}


def _shared(
    records: Sequence[Record],
    methods: Sequence[str],
    tables: Mapping[str, Sequence[Row]],
    link: Callable[[Path], str],
) -> dict[str, Any]:
    rows = _rows(tables)
    index = _index(rows)
    run = {id(record): i for i, record in enumerate(records)}
    look = styles(rows)
    method = {name: i for i, name in enumerate(look)}
    tasks = sorted({record.task for record in records})
    return {
        "tasks": [" on ".join(task) for task in tasks],
        "methods": [
            {
                "name": name,
                "colour": style.colour,
                "marker": style.marker or "o",
                "dash": style.dash,
                "dense": not style.marker,
            }
            for name, style in look.items()
        ],
        "metrics": {
            name: {
                "percent": in_percent(name),
                "lower": smaller_is_better(name),
                "bounds": list(bounds(name)),
            }
            for name in tables
        },
        "runs": {
            "task": [tasks.index(record.task) for record in records],
            "method": [method[name] for name in methods],
            "sparsity": [record.sparsity for record in records],
            "reached": [rounded(finite(record.values.get("sparsity"))) for record in records],
            "seed": [record.seed for record in records],
            "kept": [record.kept for record in records],
            "zeros": [rounded(record.zeros) for record in records],
            "flops": [record.flops for record in records],
            "seconds": [rounded(record.seconds) for record in records],
            "folder": [link(record.folder) for record in records],
            "link": [quote(link(record.folder / "results.json")) for record in records],
            "metrics": {
                name: [rounded(record.metrics.get(name)) for record in records] for name in tables
            },
        },
        "rows": {
            "task": [tasks.index(row.task) for row in rows],
            "method": [method[row.method] for row in rows],
            "sparsity": [row.sparsity for row in rows],
            "kept": [rounded(row.kept) for row in rows],
            "zeros": [rounded(row.zeros) for row in rows],
            "flops": [rounded(row.flops) for row in rows],
            "seconds": [rounded(row.seconds) for row in rows],
            "runs": [[run[id(record)] for record in row.records] for row in rows],
        },
        "estimates": {name: _columns(table, index, _ESTIMATES) for name, table in tables.items()},
        "marks": {name: _columns(table, index, _MARKS) for name, table in tables.items()},
        "axes": _axes(records, rows),
        "ranks": {
            name: [[method[m] for m in ranking(_pruned(table, task), name)] for task in tasks]
            for name, table in tables.items()
        },
        "captions": {
            name: [captions([row for row in table if row.task == task], name) for task in tasks]
            for name, table in tables.items()
        },
    }


def _all_differences(
    tables: Mapping[str, Sequence[Row]], baselines: Sequence[str], inference: Inference
) -> dict[str, Any]:
    """Metric -> baseline -> its differences."""
    index = _index(_rows(tables))
    return {
        name: {
            other: _differences(with_differences(table, other, inference)[0], index)
            for other in baselines
            if any(other in (row.method, row.pruner) for row in table)
        }
        for name, table in tables.items()
    }


def _columns(
    table: Iterable[Row], index: Mapping[Place, int], fields: Mapping[str, Callable[[Row], Any]]
) -> dict[str, list[Any]]:
    """Field -> its value in each of the page's rows; None where the table has no row."""
    columns: dict[str, list[Any]] = {key: [None] * len(index) for key in fields}
    for row in table:
        for key, get in fields.items():
            columns[key][index[row.task, row.method, row.sparsity]] = get(row)
    return columns


_MARKS: Mapping[str, Callable[[Row], Any]] = {
    "seeds": seeds,
    "barred": lambda row: bool(row.barred),
}

_ESTIMATES: Mapping[str, Callable[[Row], Any]] = {
    "mean": lambda row: rounded(row.result.mean),
    "half": lambda row: rounded(row.result.half),
    "n": lambda row: row.result.n,
    "best": lambda row: row.best,
}


def _differences(table: Sequence[Row], index: Mapping[Place, int]) -> dict[str, list[Any]]:
    sparsities = defaultdict(list)
    for row in table:
        sparsities[row.task, row.method].append(row.sparsity)

    def reference(row: Row) -> int:
        of = sparsities[row.task, row.reference or ""]
        # A dense baseline has one row for all sparsities.
        at = row.sparsity if row.sparsity in of else of[0]
        return index[row.task, row.reference or "", at]

    def of(get: Callable[[Difference], Any]) -> Callable[[Row], Any]:
        return lambda row: None if row.difference is None else get(row.difference)

    fields = {
        "mean": of(lambda found: rounded(found.estimate.mean)),
        "half": of(lambda found: rounded(found.estimate.half)),
        "n": of(lambda found: found.estimate.n),
        "p": of(lambda found: rounded(found.p, 4)),
        "holm": lambda row: rounded(row.p, 4),
        "starred": lambda row: row.starred if row.difference else None,
        "reference": lambda row: reference(row) if row.difference else None,
        "apart": lambda row: True if row.reference and row.difference is None else None,
    }
    return _columns((row for row in table if row.reference is not None), index, fields)


def _axes(records: Sequence[Record], rows: Sequence[Row]) -> dict[str, Any]:
    """Name -> title, values of rows and runs, and for settings each row's line along the axis."""
    found = {}
    for name, title in axes(records).items():
        lines = [row.method for row in along(rows, name)]
        of_metric = any(name in record.metrics for record in records)
        drawn = [] if of_metric else with_results(rows, name)
        halves = {(row.task, row.method, row.sparsity): row.result.half for row in drawn}
        found[name] = {
            "title": title,
            "better": direction(name, records),
            "rows": [_scaled(place(row, name), name) for row in rows],
            "half": [rounded(halves.get((r.task, r.method, r.sparsity))) for r in rows],
            "runs": [_scaled(number(record, name), name) for record in records],
            "lines": lines if is_setting(name, records) else None,
        }
    return found


def _scaled(value: float | None, axis: str) -> float | None:
    return None if value is None else rounded(print_scale(axis) * value)


def _pruned(table: Sequence[Row], task: tuple[str, str]) -> list[Row]:
    return [row for row in table if row.task == task and row.sparsity > 0]


def _budgets(records: Sequence[Record]) -> list[str]:
    """For each task what was spent, and when."""
    found = []
    for task in sorted({record.task for record in records}):
        own = [record for record in records if record.task == task]
        days = sorted({f"{datetime.fromtimestamp(r.written, UTC):%Y-%m-%d}" for r in own})
        hours = sum(record.seconds for record in own) / 3600
        said = [
            f"{len(own)} runs on seeds {spans({record.seed for record in own})}",
            *budget(own),
            f"{hours:.2g} hours of training in all",
            f"Ended {' to '.join(dict.fromkeys((days[0], days[-1])))}",
        ]
        found.append(". ".join(said) + ".")
    return found


def _layers(records: Sequence[Record]) -> dict[str, Any]:
    """Layer names of each task, and each run's sparsities in that order; None if it has none."""
    tasks = sorted({record.task for record in records})
    names: dict[tuple[str, str], dict[str, None]] = {task: {} for task in tasks}
    found: list[dict[str, float]] = []
    for record in records:
        own = {}
        for layer in record.values.get("layers") or []:
            try:
                own[str(layer["name"])] = 1 - layer["nonzero"] / layer["numel"]
            except (TypeError, KeyError, ArithmeticError):
                continue
        found.append(own)
        names[record.task] |= dict.fromkeys(own)
    return {
        "names": [list(names[task]) for task in tasks],
        "sparsity": [
            [rounded(own.get(name), 4) for name in names[record.task]] if own else None
            for record, own in zip(records, found, strict=True)
        ],
    }


def _training(records: Sequence[Record], cache: FileCache) -> dict[str, Any]:
    """Curves by quantity and run: the index of its steps, and its values."""
    histories = [
        cache.whole(record.folder / "metrics.jsonl", read_history) or {} for record in records
    ]
    names = Counter(name for history in histories for name in history)
    most = min(200, max(8, MOST_CURVE_VALUES // max(1, names.total())))
    steps: dict[tuple[int, ...], int] = {}
    curves: dict[str, list[Any]] = {name: [] for name in sorted(names)}
    thinner = False
    for history in histories:
        for name, of_runs in curves.items():
            curve = history.get(name)
            if not curve:
                of_runs.append(None)
                continue
            thinner |= len(curve) > most
            of_runs.append(on_grid(thinned(curve, most), steps))
    return {
        "curves": curves,
        "steps": [list(grid) for grid in steps],
        "most": most if thinner else 0,
    }


def _configs(records: Sequence[Record]) -> dict[str, Any]:
    """Keys that all runs share, and the values of those that differ, with each run's choice."""
    flat = [whole_config(record) for record in records]
    same, varying = {}, {}
    for key in dict.fromkeys(key for config in flat for key in config):
        of = [config.get(key, "unset") for config in flat]
        values = {value: i for i, value in enumerate(dict.fromkeys(of))}
        if len(values) == 1:
            same[key] = of[0]
        else:
            varying[key] = {"values": list(values), "of": [values[value] for value in of]}
    return {"same": same, "varying": varying}


def relative_to(folder: Path) -> Callable[[Path], str]:
    """Links for a page in a folder; they stay valid if both are moved together."""
    start = folder.resolve()
    return lambda path: Path(os.path.relpath(path.resolve(), start)).as_posix()
