"""Rows as a table on the terminal and as CSV."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from seven_exp.compare.metrics import in_percent, is_share
from seven_exp.compare.statistics import Difference, Estimate
from seven_exp.compare.summary import (
    Row,
    by_task,
    lost_words,
    missed_target,
    overshot_target,
    undecided,
)
from seven_exp.console import table_console
from seven_exp.files.atomic import replacing

ZEROS = "zeros of all parameters"

BARRED = "†"
"""Marks a row that is neither best nor starred."""

DEPARTS = "‡"
"""Marks a figure of another protocol than the published one."""


def headings(metric: str, baseline: str | None) -> list[str]:
    """Column titles; two of them appear only with a baseline."""
    compared = [f"minus {baseline}", "p (Holm)"] if baseline else []
    return ["sparsity", "method", metric, "seeds", *compared, "kept", ZEROS, "seconds"]


def cells(row: Row, metric: str, baseline: str | None) -> list[str]:
    """A row as text: percentages for accuracies, ± half the 95% interval if there is one."""
    compared = [_difference(row, metric), _p(row)] if baseline else []
    return [
        percent(row.sparsity),
        row.method,
        with_interval(row.result, metric, signed=False) + (DEPARTS if departures(row) else ""),
        seeds(row),
        *compared,
        f"{row.kept:,.0f}",
        "" if row.zeros is None else percent(row.zeros),
        f"{row.seconds:.1f}",
    ]


def seeds(row: Row) -> str:
    """Number of seeds of the mean, and how many have no result: "1 (4 of 5 failed)†"."""
    lost = f" ({lost_words(row)})" if row.lost else ""
    return f"{row.result.n}{lost}{BARRED if row.barred else ''}"


def bars(rows: Sequence[Row], name: Callable[[str], str] = str) -> list[str]:
    """What bars rows from being best or starred, one text for each reason.

    Args:
        rows: Of one task.
        name: How methods are called.
    """
    said, others = [], False
    for row in rows:
        if words := missed_target(row):
            said.append(f"{name(row.method)} kept too many weights, {words}")
        elif row.barred:
            others = True
    if others:
        said.append("seeds without a result, or fewer than a rival has")
    return said


def captions(rows: Sequence[Row], metric: str) -> list[str]:
    """What a reader of one task's table must know, one sentence each."""
    said = [f"{BARRED} neither best nor starred: {words}" for words in bars(rows)]
    if all(row.result.half is None for row in rows):
        said.append("bold is the best value, no ranking: one seed has no interval")
    elif words := overlaps(rows):
        said.append(f"bold is the best mean, no ranking: its {words}")
    if any(row.difference and row.difference.test == "unpaired" for row in rows):
        said.append("differences are of means, not paired by seed (Welch's t test)")
    return said + reservations(rows, metric)


def overlaps(rows: Sequence[Row]) -> str:
    """Whom the best of each sparsity can't be told from, after "its"; "" if there is none."""
    found = undecided(rows) if any(row.result.half is not None for row in rows) else {}
    places = ", ".join(f"{len(some)} at {percent(target)}" for target, some in found.items())
    without = any(row.result.half is None for some in found.values() for row in some)
    also = ", or these have none" if without else ""
    return f"interval overlaps those of other methods{also} ({places})" if found else ""


def reservations(rows: Sequence[Row], metric: str, name: Callable[[str], str] = str) -> list[str]:
    """What limits the figures of one task's table, one sentence each.

    Args:
        rows: Of one task.
        metric: Their metric.
        name: How methods are called.
    """
    said = []
    for words in dict.fromkeys(filter(None, map(departures, rows))):
        named = dict.fromkeys(name(row.method) for row in rows if departures(row) == words)
        everything = len(named) == len({row.method for row in rows})
        names = "all methods" if everything and len(named) > 1 else ", ".join(named)
        said.append(f"{DEPARTS} not of the published protocol: {words} ({names})")
    if few := [f"{name(row.method)} {words}" for row in rows if (words := overshot_target(row))]:
        said.append(f"fewer weights than the sparsity allows, which harms: {', '.join(few)}")
    if is_share(metric) and any(row.step is None for row in rows):
        said.append(
            "the test set's size is not in some records: their intervals may be narrower than one "
            "test example"
        )
    return said


def departures(row: Row) -> str:
    """How a row's figures depart from the published protocol; "" if they don't, or have none."""
    found = (words for record in row.records for words in record.values.get("departures") or ())
    return "; ".join(dict.fromkeys(map(str, found)))


def percent(sparsity: float) -> str:
    """As short as possible: 90%, 97.5%."""
    return f"{100 * sparsity:.4g}%"


def print_table(rows: Sequence[Row], metric: str, baseline: str | None) -> None:
    """Print one table for each model and data set; the best of each sparsity in bold."""
    console = table_console()
    for task, chosen in by_task(rows):
        table = Table(title=Text(" on ".join(task)), box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in headings(metric, baseline):
            justify: JustifyMethod = "left" if heading == "method" else "right"
            table.add_column(Text(heading), justify=justify)
        for i, row in enumerate(chosen):
            last = i + 1 == len(chosen) or chosen[i + 1].sparsity != row.sparsity
            # As Text, because "[...]" in a setting's value would be parsed as markup.
            line = map(Text, cells(row, metric, baseline))
            table.add_row(*line, style="bold" if row.best else None, end_section=last)
        console.print(table)
        for caption in captions(chosen, metric):
            console.print(Text(caption), soft_wrap=True)


def write_csv(path: Path, rows: Sequence[Row], metric: str) -> None:
    """All numbers in full precision, empty where there is none."""
    write_lines(path, [_facts(row, metric) for row in rows])


def _facts(row: Row, metric: str) -> dict[str, object]:
    d = row.difference
    return {
        "model": row.model,
        "dataset": row.dataset,
        "pruner": row.pruner,
        "method": row.method,
        "sparsity": row.sparsity,
        "metric": metric,
        "mean": row.result.mean,
        "half_interval_95": row.result.half,
        "seeds": row.result.n,
        "baseline": row.reference,
        "difference": d and d.estimate.mean,
        "difference_half_interval_95": d and d.estimate.half,
        "pairs": d and _pairs(d),
        "p": d and d.p,
        "p_holm": row.p,
        "kept": row.kept,
        "seconds": row.seconds,
        "zeros_total": row.zeros,
        "without_result": sum(row.lost.values()),
        "barred": row.barred,
        "best": int(row.best),
        "starred": int(row.starred),
        "test": d and d.test,
        "departures": departures(row),
    }


def write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Mappings with equal keys as CSV.

    Raises:
        OSError: It can't be written.
    """
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _pairs(difference: Difference) -> int | None:
    return difference.estimate.n if difference.test == "paired" else None


def _difference(row: Row, metric: str) -> str:
    if row.difference is None:
        return "seeds differ" if row.reference else ""
    words = with_interval(row.difference.estimate, metric, signed=True)
    pairs = _pairs(row.difference)
    return words if pairs in (None, row.result.n) else f"{words} (n={pairs})"


def _p(row: Row) -> str:
    if row.p is None:
        return ""
    return ("<0.001" if row.p < 0.001 else f"{row.p:.3f}") + ("*" if row.starred else "")


def with_interval(value: Estimate, metric: str, *, signed: bool) -> str:
    """A mean, with half the width of its interval: "+1.20 ± 0.35"."""
    scale, digits = (100, 2) if in_percent(metric) else (1, 4)
    # The sum makes "+0.00" of a rounded "-0.00".
    mean = f"{round(scale * value.mean, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    half = "n/a" if value.half is None else f"{scale * value.half:.{digits}f}"
    return f"{mean} ± {half}"
