"""Converts records to rows: one for each model, data set, method and sparsity."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from seven_exp.compare.inference import PAIRED, Inference
from seven_exp.compare.metrics import resolution, smaller_is_better
from seven_exp.compare.records import FINISHED, LENGTH, Record, differing_settings, whole_config
from seven_exp.compare.statistics import (
    SIGNIFICANT,
    Difference,
    Estimate,
    estimate,
    holm,
)
from seven_exp.messages import nearest


def headline(records: Sequence[Record]) -> str:
    """The metric that most of the runs name as their headline."""
    names = Counter(str(record.values.get("metric", "accuracy")) for record in records)
    return names.most_common(1)[0][0]


@dataclass(frozen=True)
class Row:
    """The results of one setting over its seeds.

    Attributes:
        model: Its name.
        dataset: Its name.
        pruner: Its name.
        settings: What distinguishes it from other settings of the pruner, dotted key -> value.
        sparsity: Target.
        by_seed: Seed -> value of the metric.
        result: Their mean and interval.
        kept: Mean number of kept weights.
        seconds: Mean duration.
        flops: Mean number of operations of one example's forward pass; None if not counted.
        records: The runs, in the order of ``by_seed``.
        reference: The method to compare with; None for the baseline itself, or if there is none.
        difference: To the reference; None with a reference means that no seed is common.
        p: The difference's p value, corrected over the sparsity or the whole table.
        family: Number of tests that the correction covers.
        best: Whether no method of the same task and sparsity has a better mean, ignoring those that
            are `barred`.
        zeros: Mean fraction of all parameters that are zero; None if unknown.
        lost: How a seed without a result ended -> number of such seeds.
        barred: Why the row can be neither best nor starred; "" if it can.
        starred: Whether the difference is significant, and both sides are complete.
        step: The metric's smallest step on this test set; None if unknown.
    """

    model: str
    dataset: str
    pruner: str
    settings: Mapping[str, str]
    sparsity: float
    by_seed: Mapping[int, float]
    result: Estimate
    kept: float
    seconds: float
    flops: float | None = None
    records: Sequence[Record] = ()
    reference: str | None = None
    difference: Difference | None = None
    p: float | None = None
    family: int = 0
    best: bool = False
    zeros: float | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    barred: str = ""
    starred: bool = False
    step: float | None = 0.0

    @property
    def method(self) -> str:
        """The pruner, with the settings that distinguish it from its other methods."""
        return method_name(self.pruner, self.settings)

    @property
    def task(self) -> tuple[str, str]:
        """(model, dataset)."""
        return self.model, self.dataset

    @property
    def place(self) -> tuple[tuple[str, str], float]:
        """(task, sparsity): the rows that it competes with have the same."""
        return self.task, self.sparsity


def by_task(rows: Sequence[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    """(model, data set) and its rows, in order."""
    return [(t, [r for r in rows if r.task == t]) for t in dict.fromkeys(r.task for r in rows)]


def method_name(pruner: str, settings: Mapping[str, str]) -> str:
    """The pruner, with the settings that distinguish it from its other methods.

    A switch that is off is not named, so that a method keeps its name when it is also run with it.
    """
    named = (f"{key}={value}" for key, value in settings.items() if value != "false")
    return " ".join([pruner, *named])


def summarize(
    records: Sequence[Record],
    metric: str,
    baseline: str | None,
    settings: Sequence[Mapping[str, str]] | None = None,
    inference: Inference = PAIRED,
) -> tuple[list[Row], list[str]]:
    """Rows by task, sparsity and then result, best first; and a description of what was left out.

    Args:
        records: At least one. Runs without a result are counted in their rows.
        metric: A final metric that the records have.
        baseline: A pruner, or one of its methods if it has several; None for no differences.
        settings: Those of `differing_settings`, if already computed.
        inference: How differences are tested.

    Raises:
        ValueError: No record has the metric, or none belongs to the baseline.
    """
    metrics = {name for record in records for name in record.metrics}
    if not metrics:
        raise ValueError(f"--metric is '{metric}': no run has a finite metric")
    if metric not in metrics:
        raise ValueError(f"--metric is '{metric}': {nearest(metric, metrics)}")
    settings = differing_settings(records) if settings is None else settings
    groups, notes = _groups(records, settings, metric)
    rows = [_row(group, metric) for group in groups]
    sign = 1 if smaller_is_better(metric) else -1
    rows = _with_best(rows, sign)
    if baseline is not None:
        rows, torn = with_differences(rows, baseline, inference)
        if torn:
            notes.append(
                f"differences: {len(torn)} ('{baseline}' has several settings: "
                f"take one, such as --baseline '{torn[0].method}')"
            )
        notes += _without_pairs(rows)
    rows.sort(key=lambda r: (r.task, r.sparsity, sign * r.result.mean, r.method))
    return rows, notes


@dataclass
class _Group:
    """The runs of a row by seed, and those without a result."""

    settings: Mapping[str, str]
    runs: dict[int, Record] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)


def _groups(
    records: Sequence[Record], settings: Sequence[Mapping[str, str]], metric: str
) -> tuple[list[_Group], list[str]]:
    """The rows' runs, and a description of those in no row."""
    groups: dict[object, _Group] = {}
    lost: list[tuple[Record, Mapping[str, str]]] = []
    left_out: Counter[str] = Counter()
    for record, differing in zip(records, settings, strict=True):
        if metric not in record.metrics:
            if record.status == FINISHED:
                left_out[f"without {metric}"] += 1
            lost.append((record, differing))
            continue
        key = (*record.task, record.pruner, *differing.items(), record.sparsity)
        runs = groups.setdefault(key, _Group(differing)).runs
        other = runs.get(record.seed)
        if other is not None:
            left_out["alike in all but the hash (the newest is kept)"] += 1
        if other is None or record.written >= other.written:
            runs[record.seed] = record
    notes = [f"{n} {kind}" for kind, n in sorted(left_out.items())]
    notes += _count_lost(groups.values(), lost, metric)
    if unknown := {key for group in groups.values() for key in _unknown(group.runs.values())}:
        notes.append(f"settings that some runs of a row don't know: {', '.join(sorted(unknown))}")
    return list(groups.values()), notes


def _count_lost(
    groups: Collection[_Group], lost: Sequence[tuple[Record, Mapping[str, str]]], metric: str
) -> list[str]:
    """Count each run without a result in its row; return a description of methods without a row.

    A seed that has a result from another attempt is not lost.
    """
    nowhere: dict[tuple[str, float, str], set[int]] = defaultdict(set)
    for record, differing in lost:
        same = [group for group in groups if _belongs(record, differing, group)]
        if len(same) > 1:
            # They differ in length, and a run that didn't finish only knows its plan.
            same = [group for group in same if _length(record) == _length(_any(group))]
        status = f"without {metric}" if record.status == FINISHED else record.status
        if len(same) == 1:
            if record.seed not in same[0].runs:
                same[0].lost[record.seed] = status
        elif record.status != FINISHED:
            name = method_name(record.pruner, _but_steps(differing))
            nowhere[name, record.sparsity, status].add(record.seed)
    return [
        f"{name} at {100 * sparsity:.4g}% ({len(seeds)} {status}, none finished)"
        for (name, sparsity, status), seeds in sorted(nowhere.items())
    ]


def _belongs(record: Record, differing: Mapping[str, str], group: _Group) -> bool:
    one = _any(group)
    return (record.task, record.pruner, record.sparsity, _but_steps(differing)) == (
        *(one.task, one.pruner, one.sparsity),
        _but_steps(group.settings),
    )


def _any(group: _Group) -> Record:
    return next(iter(group.runs.values()))


def _but_steps(settings: Mapping[str, str]) -> Mapping[str, str]:
    return {key: value for key, value in settings.items() if key != "steps"}


def _length(record: Record) -> list[str | None]:
    config = whole_config(record)
    return [config.get(key) for key in LENGTH]


def _without_pairs(rows: Sequence[Row]) -> list[str]:
    """Describe the differences that are missing because no seed is common."""
    apart = [row for row in rows if row.reference is not None and row.difference is None]
    if not apart:
        return []
    first = apart[0]
    reference = next(r for r in rows if r.method == first.reference and r.task == first.task)
    return [
        f"differences: {len(apart)} (seeds differ: {first.method} {spans(first.by_seed)}, "
        f"{reference.method} {spans(reference.by_seed)}; --unpaired compares them)"
    ]


def spans(seeds: Iterable[int]) -> str:
    """A short text for seeds: "0-4, 7"."""
    found: list[list[int]] = []
    for seed in sorted(seeds):
        if found and seed == found[-1][-1] + 1:
            found[-1].append(seed)
        else:
            found.append([seed])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in found)


def _unknown(group: Collection[Record]) -> set[str]:
    """Settings that some of the records have and others lack."""
    count = Counter(key for record in group for key in record.settings)
    return {key for key, n in count.items() if n < len(group)}


def _row(group: _Group, metric: str) -> Row:
    records = list(group.runs.values())
    by_seed = {record.seed: record.metrics[metric] for record in records}
    step = step_of(records, metric)
    return Row(
        model=records[0].model,
        dataset=records[0].dataset,
        pruner=records[0].pruner,
        settings=group.settings,
        sparsity=records[0].sparsity,
        by_seed=by_seed,
        result=estimate(list(by_seed.values()), step or 0.0),
        kept=_mean(record.kept for record in records) or 0.0,
        seconds=_mean(record.seconds for record in records) or 0.0,
        flops=_mean(record.flops for record in records),
        records=tuple(records),
        zeros=_mean(record.zeros for record in records),
        lost=dict(sorted(Counter(group.lost.values()).items())),
        step=step,
    )


def step_of(records: Sequence[Record], metric: str) -> float | None:
    """The largest of the records' smallest steps of a metric; None if one is unknown."""
    steps = [resolution(metric, record.test_examples) for record in records]
    known = [step for step in steps if step is not None]
    return max(known) if len(known) == len(steps) else None


def largest_step(rows: Iterable[Row]) -> float:
    """The largest of the steps that are known."""
    return max(row.step or 0.0 for row in rows)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None if none is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def with_differences(
    rows: Sequence[Row],
    baseline: str,
    inference: Inference = PAIRED,
) -> tuple[list[Row], list[Row]]:
    """Rows with their differences; and one of several references for rows without a unique one."""
    names = {row.method for row in rows} | {row.pruner for row in rows}
    if baseline not in names:
        raise ValueError(f"--baseline is '{baseline}': {nearest(baseline, names)}")
    references: dict[object, list[Row]] = defaultdict(list)
    pruned = False
    for row in rows:
        if baseline in (row.method, row.pruner):
            references[row.place].append(row)
            pruned |= row.sparsity > 0
    compared, torn, whole = [], [], []
    for row in rows:
        # A dense baseline applies to every sparsity.
        candidates = references[row.task, row.sparsity if pruned else 0.0]
        reference = None
        if baseline not in (row.method, row.pruner) and candidates:
            reference = reference_of(row, candidates)
            if reference is None:
                torn.append(candidates[0])
            else:
                floor = largest_step((row, reference))
                difference = inference.differ(row.by_seed, reference.by_seed, floor)
                row = replace(row, difference=difference, reference=reference.method)
        compared.append(row)
        whole.append(not row.barred and reference is not None and not reference.lost)
    families: dict[object, dict[int, float]] = defaultdict(dict)
    for i, row in enumerate(compared):
        if row.difference is not None and row.difference.p is not None:
            family = row.place if inference.family == "sparsity" else None
            families[family][i] = row.difference.p
    for raw in families.values():
        for i, p in zip(raw, holm(list(raw.values())), strict=True):
            starred = whole[i] and p < SIGNIFICANT
            compared[i] = replace(compared[i], p=p, family=len(raw), starred=starred)
    return compared, torn


def reference_of(row: Row, candidates: Sequence[Row]) -> Row | None:
    """The only candidate, or the one with the row's settings; None if there is none."""
    if len(candidates) == 1:
        return candidates[0]
    alike = [
        other
        for other in candidates
        if all(row.settings.get(key, value) == value for key, value in other.settings.items())
    ]
    return alike[0] if len(alike) == 1 else None


def _with_best(rows: Sequence[Row], sign: int) -> list[Row]:
    """Rows with what bars them, and the best row of each place that nothing bars."""
    most: dict[object, int] = defaultdict(int)
    for row in rows:
        most[row.place] = max(most[row.place], row.result.n)
    rows = [replace(row, barred=_bar(row, most[row.place])) for row in rows]
    best: dict[object, float] = {}
    for row in rows:
        if not row.barred:
            cost = sign * row.result.mean
            best[row.place] = min(best.get(row.place, cost), cost)
    return [replace(r, best=not r.barred and sign * r.result.mean <= best[r.place]) for r in rows]


def _bar(row: Row, most: int) -> str:
    """Why a row is neither best nor starred; "" if it can be."""
    if row.lost:
        return lost_words(row)
    return f"a rival has {most} seeds" if row.result.n < most else missed_target(row)


def missed_target(row: Row) -> str:
    """How far a row's runs are from their sparsity, if they keep over 5% too many weights."""
    reached = _reached(row)
    return _instead(reached, row) if 1 - reached > 1.05 * (1 - row.sparsity) else ""


def overshot_target(row: Row) -> str:
    """How far a row's runs are from their sparsity, if they keep over 5% too few weights."""
    reached = _reached(row)
    return _instead(reached, row) if 1 - row.sparsity > 1.05 * (1 - reached) else ""


def _reached(row: Row) -> float:
    """The mean sparsity at the end of the runs; the target if it is unknown."""
    found = (record.values.get("sparsity") for record in row.records)
    return fmean([v for v in found if isinstance(v, int | float)] or [row.sparsity])


def _instead(reached: float, row: Row) -> str:
    return f"{100 * reached:.4g}% reached instead of {100 * row.sparsity:.4g}%"


def lost_words(row: Row) -> str:
    """How many seeds of a row have no result: "4 of 5 failed"; "" if all have one."""
    if not row.lost:
        return ""
    (status, first), *others = row.lost.items()
    words = [f"{first} of {row.result.n + sum(row.lost.values())} {status}"]
    return ", ".join([*words, *(f"{n} {status}" for status, n in others)])


def undecided(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """Sparsity -> other rows whose intervals overlap that of the best mean, or that have none.

    Args:
        rows: Rows of one task.
    """
    best = {row.sparsity: row for row in rows if row.best}
    found: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        rival = best.get(row.sparsity)
        if rival is not None and row.method != rival.method and _overlap(row, rival):
            found[row.sparsity].append(row)
    return dict(sorted(found.items()))


def _overlap(one: Row, other: Row) -> bool:
    """Whether two intervals overlap; a mean without an interval overlaps any."""
    ours, theirs = one.result.ends(), other.result.ends()
    return ours is None or theirs is None or (ours[0] <= theirs[1] and theirs[0] <= ours[1])
