"""Records -> rows: one for each model, data set, method and sparsity."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from seven_exp.compare.records import Record, differing_settings
from seven_exp.compare.statistics import (
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
)
from seven_exp.registry import nearest

SMALLER_IS_BETTER = ("loss", "perplexity")
"""Metrics, each also with an ending for a further split, such as loss_mismatched."""


def headline(records: Sequence[Record]) -> str:
    """The metric that most of the runs name as their task's."""
    names = Counter(str(record.values.get("metric", "accuracy")) for record in records)
    return names.most_common(1)[0][0]


def smaller_is_better(metric: str) -> bool:
    """Whether the best run has the lowest value."""
    return metric.partition("_")[0] in SMALLER_IS_BETTER


@dataclass(frozen=True)
class Row:
    """What the seeds of one setting came to.

    Attributes:
        model: Its name.
        dataset: Its name.
        pruner: Its name.
        settings: What tells it from its siblings, dotted key -> value.
        sparsity: Target.
        by_seed: Seed -> value of the metric.
        result: Their mean and interval.
        kept: Mean number of kept weights.
        seconds: Mean.
        flops: Mean number of operations of one example's forward pass; None where none was counted.
        records: The runs, in the order of ``by_seed``.
        reference: The method it is compared with; None for the baseline itself, and where there
            is none to compare with.
        difference: To the reference.
        p: The difference's p value, corrected over the whole table.
        best: Whether no method of the same task and sparsity has a better mean.
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
    best: bool = False

    @property
    def method(self) -> str:
        """The pruner, with the settings that tell it from its siblings."""
        return method_name(self.pruner, self.settings)

    @property
    def task(self) -> tuple[str, str]:
        """(model, dataset)."""
        return self.model, self.dataset


def method_name(pruner: str, settings: Mapping[str, str]) -> str:
    """The pruner, with the settings that tell it from its siblings."""
    return " ".join([pruner, *(f"{key}={value}" for key, value in settings.items())])


def summarize(
    records: Sequence[Record],
    metric: str,
    baseline: str | None,
    settings: Sequence[Mapping[str, str]] | None = None,
) -> tuple[list[Row], list[str]]:
    """Rows by task, sparsity and then result, the best first; and words for what was left out.

    Args:
        records: At least one.
        metric: A final metric that the records have.
        baseline: A pruner, or one of its methods where it has several; None for no differences.
        settings: Those of `differing_settings`, where they are known already.

    Raises:
        ValueError: No record has the metric, or none is of the baseline.
    """
    metrics = {name for record in records for name in record.metrics}
    if not metrics:
        raise ValueError(f"--metric is '{metric}': no run has a finite metric")
    if metric not in metrics:
        raise ValueError(f"--metric is '{metric}': {nearest(metric, metrics)}")
    groups: dict[object, dict[int, Record]] = defaultdict(dict)
    of_group: dict[object, Mapping[str, str]] = {}
    left_out: Counter[str] = Counter()
    settings = differing_settings(records) if settings is None else settings
    for record, differing in zip(records, settings, strict=True):
        if metric not in record.metrics:
            left_out[f"without {metric}"] += 1
            continue
        key = (*record.task, record.pruner, *differing.items(), record.sparsity)
        of_group[key] = differing
        other = groups[key].get(record.seed)
        if other is not None:
            left_out["alike in all but the hash (the newest is kept)"] += 1
        if other is None or record.written >= other.written:
            groups[key][record.seed] = record
    notes = [f"{n} {kind}" for kind, n in sorted(left_out.items())]
    if unknown := {key for group in groups.values() for key in _unknown(group.values())}:
        notes.append(f"settings that some runs of a row don't know: {', '.join(sorted(unknown))}")

    rows = [_row(list(group.values()), of_group[key], metric) for key, group in groups.items()]
    if baseline is not None:
        rows, torn = with_differences(rows, baseline)
        if torn:
            notes.append(
                f"differences: {len(torn)} ('{baseline}' has several settings: "
                f"take one, such as --baseline '{torn[0].method}')"
            )
    sign = 1 if smaller_is_better(metric) else -1
    rows = _with_best(rows, sign)
    rows.sort(key=lambda r: (r.task, r.sparsity, sign * r.result.mean, r.method))
    return rows, notes


def _unknown(group: Collection[Record]) -> set[str]:
    """Settings that some of the records have and others lack."""
    count = Counter(key for record in group for key in record.settings)
    return {key for key, n in count.items() if n < len(group)}


def _row(group: Sequence[Record], settings: Mapping[str, str], metric: str) -> Row:
    by_seed = {record.seed: record.metrics[metric] for record in group}
    flops = [record.flops for record in group if record.flops is not None]
    return Row(
        model=group[0].model,
        dataset=group[0].dataset,
        pruner=group[0].pruner,
        settings=settings,
        sparsity=group[0].sparsity,
        by_seed=by_seed,
        result=estimate(list(by_seed.values())),
        kept=sum(record.kept for record in group) / len(group),
        seconds=sum(record.seconds for record in group) / len(group),
        flops=sum(flops) / len(flops) if flops else None,
        records=tuple(group),
    )


def with_differences(rows: Sequence[Row], baseline: str) -> tuple[list[Row], list[Row]]:
    """Rows with their differences; and one of several references for each row that has no one."""
    names = {row.method for row in rows} | {row.pruner for row in rows}
    if baseline not in names:
        raise ValueError(f"--baseline is '{baseline}': {nearest(baseline, names)}")
    references: dict[object, list[Row]] = defaultdict(list)
    pruned = False
    for row in rows:
        if baseline in (row.method, row.pruner):
            references[*row.task, row.sparsity].append(row)
            pruned |= row.sparsity > 0
    compared, torn = [], []
    for row in rows:
        # A dense baseline is there for every sparsity.
        candidates = references[*row.task, row.sparsity if pruned else 0.0]
        if baseline not in (row.method, row.pruner) and candidates:
            reference = _reference(row, candidates)
            if reference is None:
                torn.append(candidates[0])
            else:
                difference = paired_difference(row.by_seed, reference.by_seed)
                row = replace(row, difference=difference, reference=reference.method)
        compared.append(row)
    tested = [i for i, r in enumerate(compared) if r.difference and r.difference.p is not None]
    raw = [d.p for i in tested if (d := compared[i].difference) and d.p is not None]
    for i, p in zip(tested, holm(raw), strict=True):
        compared[i] = replace(compared[i], p=p)
    return compared, torn


def _reference(row: Row, candidates: Sequence[Row]) -> Row | None:
    """The only candidate, or of several the one that has the row's settings; None if none has."""
    if len(candidates) == 1:
        return candidates[0]
    alike = [
        other
        for other in candidates
        if all(row.settings.get(key, value) == value for key, value in other.settings.items())
    ]
    return alike[0] if len(alike) == 1 else None


def _with_best(rows: Sequence[Row], sign: int) -> list[Row]:
    best: dict[object, float] = {}
    for row in rows:
        place, cost = (row.task, row.sparsity), sign * row.result.mean
        best[place] = min(best.get(place, cost), cost)
    return [replace(r, best=sign * r.result.mean <= best[r.task, r.sparsity]) for r in rows]
