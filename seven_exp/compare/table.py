"""Rows as a table on the terminal and as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from seven_exp.atomic import replacing
from seven_exp.compare.statistics import Difference, Estimate
from seven_exp.compare.summary import Row
from seven_exp.console import table_console

SIGNIFICANT = 0.05


def headings(metric: str, baseline: str | None) -> list[str]:
    """Column titles; three of them are there only with a baseline."""
    compared = [f"minus {baseline}", "p (Holm)"] if baseline else []
    return ["sparsity", "method", metric, "seeds", *compared, "kept", "seconds"]


def cells(row: Row, metric: str, baseline: str | None) -> list[str]:
    """A row in words: per cent for accuracies, ± half the 95% interval where there is one."""
    compared = [_difference(row, metric), _p(row.p)] if baseline else []
    return [
        percent(row.sparsity),
        row.method,
        _with_interval(row.result, metric, signed=False),
        str(row.result.n),
        *compared,
        f"{row.kept:,.0f}",
        f"{row.seconds:.1f}",
    ]


def in_percent(metric: str) -> bool:
    """Whether a metric is told in per cent."""
    return "accuracy" in metric


def percent(sparsity: float) -> str:
    """As short as it can be said: 90%, 97.5%."""
    return f"{100 * sparsity:.4g}%"


def print_table(rows: Sequence[Row], metric: str, baseline: str | None) -> None:
    """Print one table for each model and data set; the best of each sparsity in bold."""
    console = table_console()
    for task in dict.fromkeys(row.task for row in rows):
        table = Table(title=Text(" on ".join(task)), box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in headings(metric, baseline):
            justify = "left" if heading == "method" else "right"
            table.add_column(Text(heading), justify=justify)  # type: ignore[arg-type]
        chosen = [row for row in rows if row.task == task]
        for i, row in enumerate(chosen):
            last = i + 1 == len(chosen) or chosen[i + 1].sparsity != row.sparsity
            # As Text, since "[...]" in a setting's value would be read as markup.
            line = map(Text, cells(row, metric, baseline))
            table.add_row(*line, style="bold" if row.best else None, end_section=last)
        console.print(table)


def write_csv(path: Path, rows: Sequence[Row], metric: str) -> None:
    """All numbers in full precision, empty where there is none."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                *("model", "dataset", "pruner", "method", "sparsity", "metric", "mean"),
                *("half_interval_95", "seeds", "baseline", "difference"),
                *("difference_half_interval_95", "pairs", "p", "p_holm", "kept", "seconds"),
            ]
        )
        for row in rows:
            d = row.difference
            writer.writerow(
                [
                    *(row.model, row.dataset, row.pruner, row.method, row.sparsity, metric),
                    *(row.result.mean, row.result.half, row.result.n, row.reference),
                    *((d.estimate.mean, d.estimate.half, d.estimate.n, d.p) if d else [None] * 4),
                    *(row.p, row.kept, row.seconds),
                ]
            )


def _difference(row: Row, metric: str) -> str:
    difference: Difference | None = row.difference
    if difference is None:
        return ""
    words = _with_interval(difference.estimate, metric, signed=True)
    pairs = difference.estimate.n
    return words if pairs == row.result.n else f"{words} (n={pairs})"


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return ("<0.001" if p < 0.001 else f"{p:.3f}") + ("*" if p < SIGNIFICANT else "")


def _with_interval(value: Estimate, metric: str, *, signed: bool) -> str:
    scale, digits = (100, 2) if in_percent(metric) else (1, 4)
    mean = f"{scale * value.mean:{'+' if signed else ''}.{digits}f}"
    half = "n/a" if value.half is None else f"{scale * value.half:.{digits}f}"
    return f"{mean} ± {half}"
