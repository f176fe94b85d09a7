"""Records -> rows: one for each model, data set, method and sparsity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seven_exp.compare.records import Record, labels
from seven_exp.compare.statistics import (
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
)
from seven_exp.registry import nearest

SMALLER_IS_BETTER = ("loss", "perplexity")


@dataclass(frozen=True)
class Row:
    """What the seeds of one setting came to.

    Attributes:
        model: Its name.
        dataset: Its name.
        method: The pruner, with the settings that tell it from its siblings.
        pruner: The pruner alone.
        sparsity: Target.
        by_seed: Seed -> value of the metric.
        result: Their mean and interval.
        difference: To the baseline; None for itself and where it has no common seed.
        p: The difference's p value, corrected over the whole table.
        kept: Mean number of kept weights.
        seconds: Mean.
        best: Whether no method of the same task and sparsity has a better mean.
    """

    model: str
    dataset: str
    method: str
    pruner: str
    sparsity: float
    by_seed: dict[int, float]
    result: Estimate
    difference: Difference | None
    p: float | None
    kept: float
    seconds: float
    best: bool


def summarize(records: Sequence[Record], metric: str, baseline: str | None) -> list[Row]:
    """Rows by task, sparsity and then result, the best first.

    Args:
        records: At least one.
        metric: A final metric that the records have.
        baseline: A method or a pruner with one method; None for no differences.

    Raises:
        ValueError: No record has the metric, or none is of the baseline.
    """
    metrics = sorted({name for record in records for name in record.values["metrics"]})
    if metric not in metrics:
        raise ValueError(f"--metric is '{metric}': {nearest(metric, metrics)}")
    rows: dict[tuple[str, str, str, float], list[Record]] = {}
    for record, method in zip(records, labels(records), strict=True):
        if metric in record.values["metrics"]:
            key = (*record.task, method, float(record.values["sparsity_target"]))
            rows.setdefault(key, []).append(record)

    found = [_row(key, group, metric) for key, group in rows.items()]
    if baseline is not None:
        found = _with_differences(found, baseline)
    sign = 1 if metric in SMALLER_IS_BETTER else -1
    found = [replace(row, best=_is_best(row, found, sign)) for row in found]
    return sorted(found, key=lambda r: (r.model, r.dataset, r.sparsity, sign * r.result.mean))


def _row(key: tuple[str, str, str, float], group: Sequence[Record], metric: str) -> Row:
    model, dataset, method, sparsity = key
    by_seed = {int(r.values["seed"]): float(r.values["metrics"][metric]) for r in group}
    return Row(
        model=model,
        dataset=dataset,
        method=method,
        pruner=group[0].values["pruner"],
        sparsity=sparsity,
        by_seed=by_seed,
        result=estimate(list(by_seed.values())),
        difference=None,
        p=None,
        kept=sum(r.values["params_nonzero"] for r in group) / len(group),
        seconds=sum(r.values["seconds"] for r in group) / len(group),
        best=False,
    )


def _with_differences(rows: Sequence[Row], baseline: str) -> list[Row]:
    names = {row.method for row in rows} | {row.pruner for row in rows}
    if baseline not in names:
        raise ValueError(f"--baseline is '{baseline}': {nearest(baseline, names)}")
    references = {
        (row.model, row.dataset, row.sparsity): row
        for row in rows
        if baseline in (row.method, row.pruner)
    }
    compared = []
    for row in rows:
        reference = references.get((row.model, row.dataset, row.sparsity))
        if reference is not None and reference.method != row.method:
            row = replace(row, difference=paired_difference(row.by_seed, reference.by_seed))
        compared.append(row)
    p_values = {
        i: row.difference.p
        for i, row in enumerate(compared)
        if row.difference is not None and row.difference.p is not None
    }
    for i, p in zip(p_values, holm(list(p_values.values())), strict=True):
        compared[i] = replace(compared[i], p=p)
    return compared


def _is_best(row: Row, rows: Sequence[Row], sign: int) -> bool:
    rivals = [
        other.result.mean
        for other in rows
        if (other.model, other.dataset, other.sparsity) == (row.model, row.dataset, row.sparsity)
    ]
    return sign * row.result.mean <= min(sign * mean for mean in rivals)
