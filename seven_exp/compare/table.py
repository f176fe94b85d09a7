"""Rows as a table on the terminal and as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from seven_exp.atomic import replacing
from seven_exp.compare.statistics import Estimate
from seven_exp.compare.summary import Row

SIGNIFICANT = 0.05


def headings(metric: str, baseline: str | None) -> list[str]:
    """Column titles."""
    difference = f"minus {baseline}" if baseline else "difference"
    return ["sparsity", "method", metric, "seeds", difference, "p (Holm)", "kept", "seconds"]


def cells(row: Row, metric: str) -> list[str]:
    """A row in words: per cent for accuracies, ± half the 95% interval."""
    difference = row.difference
    return [
        f"{row.sparsity:.1%}" if row.sparsity * 1000 % 10 else f"{row.sparsity:.0%}",
        row.method,
        _with_interval(row.result, metric, signed=False),
        str(row.result.n),
        _with_interval(difference.estimate, metric, signed=True) if difference else "",
        "" if row.p is None else f"{row.p:.3f}" + ("*" if row.p < SIGNIFICANT else ""),
        f"{row.kept:,.0f}",
        f"{row.seconds:.1f}",
    ]


def print_table(rows: Sequence[Row], metric: str, baseline: str | None) -> None:
    """Print one table for each model and data set; the best of each sparsity in bold."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 140))
    for task in dict.fromkeys((row.model, row.dataset) for row in rows):
        table = Table(title=" on ".join(task), box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in headings(metric, baseline):
            table.add_column(heading, justify="left" if heading == "method" else "right")
        chosen = [row for row in rows if (row.model, row.dataset) == task]
        for i, row in enumerate(chosen):
            last = i + 1 == len(chosen) or chosen[i + 1].sparsity != row.sparsity
            table.add_row(*cells(row, metric), style="bold" if row.best else None, end_section=last)
        console.print(table)


def write_csv(path: Path, rows: Sequence[Row], metric: str, baseline: str | None) -> None:
    """All numbers in full precision, empty where there is none."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
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
                    *(row.result.mean, row.result.half, row.result.n, baseline if d else None),
                    *((d.estimate.mean, d.estimate.half, d.estimate.n, d.p) if d else [None] * 4),
                    *(row.p, row.kept, row.seconds),
                ]
            )


def _with_interval(value: Estimate, metric: str, *, signed: bool) -> str:
    scale, digits = (100, 2) if "accuracy" in metric else (1, 4)
    mean = f"{scale * value.mean:{'+' if signed else ''}.{digits}f}"
    return mean if value.half is None else f"{mean} ± {scale * value.half:.{digits}f}"
