"""Sections of the page that explain why methods differ: agreement of masks, probe measurements."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seven_exp.compare.evidence import LOOKS, MEASURES, Contrast, Evidence, read_evidence, summed
from seven_exp.compare.file_cache import FileCache
from seven_exp.compare.history import read_history, thinned
from seven_exp.compare.overlap import Overlap, mask_overlap, read_shapes
from seven_exp.compare.page import Section, asset, on_grid, rounded
from seven_exp.compare.records import Record

MOST_METHODS = 40
"""Maximum number of rows of an overlap matrix."""

MOST_WEIGHTS = 500_000_000
"""Maximum number of weights to unpack for all matrices; further seeds are left out."""

MOST_BYTES = 64_000_000
"""Maximum total size of the ``analysis.json`` files; further runs are left out."""

MOST_POINTS = 60
"""Maximum number of points of each curve of the probe."""

CURVES = (
    *(f"analysis/{look}{measure}" for measure in MEASURES for look in ("", "choice_", "start_")),
    *("analysis/survival", "analysis/births", "analysis/unbroken"),
    *("analysis/collapsed_layers", "analysis/empty_rows", "analysis/silent"),
)
"""Logged quantities; the ratios have two curves each, ``_kept`` and ``_pruned``."""

Place = tuple[tuple[str, str], float]


def explanations(
    records: Sequence[Record], methods: Sequence[str], cache: FileCache
) -> list[Section]:
    """The sections that have any data.

    Args:
        records: In the page's order: run i of its data is ``records[i]``.
        methods: Their names, one per record.
        cache: Reads files of a run's folder.
    """
    found = []
    if matrices := _overlaps(records, methods, cache):
        found.append(Section("overlap", "Agreement of masks", matrices, asset("overlap.js")))
    if seen := _evidence(records, methods, cache):
        title = "Gradients of kept and pruned weights"
        found.append(Section("evidence", title, seen, asset("evidence.js")))
    return found


def _overlaps(
    records: Sequence[Record], methods: Sequence[str], cache: FileCache
) -> list[dict[str, Any]]:
    """A matrix for each task and sparsity with at least two masks to compare."""
    groups: dict[tuple[Place, str], dict[int, dict[str, int]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for i, record in enumerate(records):
        if record.sparsity > 0:
            shapes = cache.whole(record.folder / "masks.safetensors", read_shapes)
            if shapes is not None:
                key = (record.task, record.sparsity), json.dumps(shapes, sort_keys=True)
                groups[key][record.seed][methods[i]] = i
    found = []
    for (_, shapes_of), by_seed in sorted(groups.items()):
        size = sum(math.prod(json.loads(shape)) for shape in json.loads(shapes_of).values())
        names = sorted({name for own in by_seed.values() for name in own})
        chosen = names[:MOST_METHODS]
        seeds, runs = _within(by_seed, chosen, MOST_WEIGHTS // len(groups) // max(1, size))
        if len(runs) < 2:
            continue
        try:
            overlap = mask_overlap([records[i].folder / "masks.safetensors" for i in runs])
        except (OSError, ValueError):
            continue
        found.append(
            {
                **_matrix(overlap, runs, records, methods),
                "seeds": len(seeds),
                "more_seeds": len(by_seed) - len(seeds),
                "more_methods": len(names) - len(chosen),
            }
        )
    return found


def _within(
    by_seed: Mapping[int, Mapping[str, int]], methods: Sequence[str], most: int
) -> tuple[list[int], list[int]]:
    """Whole seeds, lowest first, as long as their runs do not exceed ``most``."""
    seeds: list[int] = []
    runs: list[int] = []
    for seed in sorted(by_seed):
        own = [by_seed[seed][name] for name in methods if name in by_seed[seed]]
        if runs and len(runs) + len(own) > most:
            break
        seeds.append(seed)
        runs += own[: max(2, most)]
    return seeds, runs


def _matrix(
    overlap: Overlap, runs: Sequence[int], records: Sequence[Record], methods: Sequence[str]
) -> dict[str, Any]:
    """Means over seeds; a method is compared with itself between different seeds."""
    of: dict[str, list[int]] = defaultdict(list)
    for place, run in enumerate(runs):
        of[methods[run]].append(place)
    seed = [records[run].seed for run in runs]
    names = sorted(of)

    def mean(values: Any, one: str, other: str) -> float | None:
        pairs = [
            values[i, j]
            for i in of[one]
            for j in of[other]
            if (i < j if one == other else seed[i] == seed[j])
        ]
        return rounded(float(np.mean(pairs)), 3) if pairs else None

    return {
        "runs": [runs[of[name][0]] for name in names],
        "jaccard": [[mean(overlap.jaccard, a, b) for b in names] for a in names],
        "expected": [[mean(overlap.expected, a, b) for b in names] for a in names],
    }


def _evidence(
    records: Sequence[Record], methods: Sequence[str], cache: FileCache
) -> dict[str, Any] | None:
    """The probe's measurements by task, method and sparsity, seed means; None if there are none."""
    groups: dict[tuple[Place, str], list[int]] = defaultdict(list)
    evidence: dict[int, Evidence] = {}
    left, unread = MOST_BYTES, 0
    for i, record in enumerate(records):
        path = record.folder / "analysis.json"
        try:
            left -= path.stat().st_size
        except OSError:
            continue
        if left < 0:
            unread += 1
            continue
        seen = cache.whole(path, read_evidence)
        if seen is None:
            continue
        evidence[i] = seen
        groups[(record.task, record.sparsity), methods[i]].append(i)
    if not groups:
        return None
    steps: dict[tuple[int, ...], int] = {}
    rows = []
    for _, runs in sorted(groups.items()):
        of = [evidence[i] for i in runs]
        collapsed = Counter(name for e in of for name in e.collapsed)
        histories = [
            cache.whole(records[i].folder / "metrics.jsonl", read_history) or {} for i in runs
        ]
        curves = {}
        for name in CURVES:
            for ending in ("", "_kept", "_pruned"):
                curve = _mean_curve([history.get(name + ending) for history in histories])
                if curve:
                    curves[name.removeprefix("analysis/") + ending] = on_grid(curve, steps)
        rows.append(
            {
                "runs": runs,
                "contrasts": {
                    f"{look}_{measure}": _mean_contrast(
                        [e.contrasts[look, measure] for e in of if (look, measure) in e.contrasts]
                    )
                    for look in LOOKS
                    for measure in MEASURES
                },
                "collapsed": [*map(list, collapsed.items())],
                "empty_rows": rounded(float(np.mean([e.empty_rows for e in of])), 4),
                "curves": curves,
            }
        )
    edges = next(iter(evidence.values())).edges
    return {"rows": rows, "steps": [list(grid) for grid in steps], "edges": edges, "unread": unread}


def _mean_curve(
    curves: Sequence[Sequence[tuple[int, float | None]] | None],
) -> list[tuple[int, float]]:
    """Mean over the runs that have a value at a step, thinned."""
    at: dict[int, list[float]] = defaultdict(list)
    for curve in curves:
        for step, value in curve or ():
            if value is not None:
                at[step].append(value)
    return thinned([(step, float(np.mean(at[step]))) for step in sorted(at)], MOST_POINTS)


def _mean_contrast(found: Sequence[Contrast]) -> dict[str, Any] | None:
    if not found:
        return None

    def mean(name: str) -> float | None:
        values = [v for one in found if (v := getattr(one, name)) is not None]
        return rounded(float(np.mean(values)), 4) if values else None

    bins = len(found[0].counts[0])
    alike = [one.counts for one in found if len(one.counts[0]) == bins]
    return {
        **{name: mean(name) for name in ("kept", "pruned", "separation", "in_layers")},
        "counts": [summed(column) for column in zip(*alike, strict=True)],
    }
