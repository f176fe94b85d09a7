"""What a person sees: a progress bar while it runs, a table at the end."""

from collections.abc import Callable, Iterator, Mapping
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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
    with bar:
        task = bar.add_task(title, total=steps, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


def table_console() -> Console:
    """A console for tables, wide enough for them where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 140))


def show_record(record: Mapping[str, Any], folder: Path) -> None:
    """Print a run's result as a small table."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    metric = record.get("metric", "accuracy")
    value = record["metrics"][metric]
    shown = f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"
    kept, prunable = record["params_nonzero"], record["params_prunable"]
    table.add_row("pruner", f"{record['pruner']} ({record['when']} training, {record['schedule']})")
    table.add_row(metric, shown)
    table.add_row("sparsity", f"{record['sparsity']:.2%}")
    table.add_row("kept weights", f"{kept:,} of {prunable:,} prunable")
    table.add_row("seconds", f"{record['seconds']:.1f} ({record['seconds_pruning']:.1f} pruning)")
    console = Console()
    console.print(table)
    console.print(f" record: {folder / 'results.json'}", soft_wrap=True, highlight=False)
