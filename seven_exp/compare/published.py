"""Compares our results with published ones."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from seven_exp.compare.summary import Row
from seven_exp.compare.table import percent
from seven_exp.console import table_console


@dataclass(frozen=True)
class Published:
    """A published value; ``percent`` as it was printed, such as "86.2" or "<70"."""

    dataset: str
    model: str
    pruner: str
    sparsity: float
    metric: str
    percent: str


def read_published() -> tuple[str, list[Published]]:
    """The source of the published values, and the values."""
    lines = Path(__file__).with_name("published.csv").read_text(encoding="utf-8").splitlines()
    source = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return source, [
        Published(dataset, model, pruner, float(sparsity), metric, value)
        for dataset, model, pruner, sparsity, metric, value in csv.reader(
            line for line in lines[1:] if not line.startswith(("#", "dataset,"))
        )
    ]


def beside(rows: Sequence[Row], metric: str) -> list[tuple[Published, list[Row]]]:
    """Each published value for our data sets and metric, with our rows for it, on any model."""
    ours = {row.dataset for row in rows}
    return [
        (
            figure,
            [
                row
                for row in rows
                if (row.dataset, row.pruner) == (figure.dataset, figure.pruner)
                and abs(row.sparsity - figure.sparsity) < 1e-9
            ],
        )
        for figure in read_published()[1]
        if figure.dataset in ours and figure.metric == metric
    ]


def print_published(rows: Sequence[Row], metric: str) -> None:
    """Print them as a table, with their source."""
    source, _ = read_published()
    table = Table(title=f"{metric} in %", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("data set", "method", "sparsity", "published", "model", "ours", "model"):
        table.add_column(heading)
    pairs = beside(rows, metric)
    for figure, same in pairs:
        place = (figure.dataset, figure.pruner, percent(figure.sparsity))
        theirs = (figure.percent, figure.model)
        for row in same:
            table.add_row(*place, *theirs, f"{100 * row.result.mean:.1f}", row.model)
        if not same:
            table.add_row(*place, *theirs, "-", "")
    console = table_console()
    if pairs:
        console.print(table)
        console.print(f"published: {source}", markup=False, highlight=False)
    else:
        console.print(f"no published figures of {metric} for these data sets", highlight=False)
