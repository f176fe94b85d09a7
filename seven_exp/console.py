"""Terminal output: a progress bar during a run, a table at its end."""

import codecs
import io
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


@contextmanager
def progress_bar(
    title: str, steps: int, *, shown: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """A bar on a terminal, nothing elsewhere; yields ``advance(steps_done, note)``."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
    with bar:
        task = bar.add_task(title, total=steps, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


def table_console() -> Console:
    """A console for tables, wide enough for them if the output is not a terminal."""
    console = _console()
    if not console.is_terminal:
        console.width = max(console.width, 140)
    return console


def print_table(
    heads: Sequence[str], lines: Iterable[Sequence[str]], words: Collection[str]
) -> None:
    """Print a table; the columns ``words`` stand on the left, those of numbers on the right."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head in words else "right")
    for line in lines:
        table.add_row(*line)
    table_console().print(table)


def write_what_can_be_encoded() -> None:
    """Make stdout write "?" for characters that its encoding lacks, and "+/-" for "±"."""
    codecs.register_error("seven_exp", _in_ascii)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="seven_exp")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    words = ("+/-" if letter == "±" else "?" for letter in error.object[error.start : error.end])
    return "".join(words), error.end


def _console() -> Console:
    """A console without markup, so that paths and names print unchanged."""
    write_what_can_be_encoded()
    return Console(markup=False, emoji=False)


def show_record(record: Mapping[str, Any], folder: Path) -> None:
    """Print a run's result as a small table."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    metric = record.get("metric", "accuracy")
    kept, prunable = record["params_nonzero"], record["params_prunable"]
    table.add_row("pruner", f"{record['pruner']} ({record['when']} training, {record['schedule']})")
    for split, values in (("test", record["metrics"]), ("validation", record["validation"])):
        if metric in values:
            value = values[metric]
            shown = f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"
            table.add_row(f"{metric} ({split})", shown)
    table.add_row("sparsity", f"{record['sparsity']:.2%}")
    table.add_row("kept weights", f"{kept:,} of {prunable:,} prunable")
    table.add_row("seconds", f"{record['seconds']:.1f} ({record['seconds_pruning']:.1f} pruning)")
    for name, value in _accuracies(record.get("harness") or {"tasks": {}}):
        table.add_row(name, value)
    console = _console()
    console.print(table)
    console.print(f" record: {folder / 'results.json'}", soft_wrap=True, highlight=False)


def show_accuracies(found: Mapping[str, Any]) -> None:
    """Print the accuracies of zero-shot tasks, each with its standard error."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, value in _accuracies(found):
        table.add_row(name, value)
    _console().print(table)


def _accuracies(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, values in found["tasks"].items():
        for kind in ("accuracy", "accuracy_norm"):
            if kind in values:
                error = values[f"{kind}_stderr"]
                spread = "" if error is None else f" (standard error {error:.2%})"
                yield f"{kind} ({name})", f"{values[kind]:.2%}{spread}"
