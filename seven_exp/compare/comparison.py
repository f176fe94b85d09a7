"""Compares the records below some folders: a table on the terminal, files, a page, W&B."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from seven_exp.compare.conclusions import Conclusions
from seven_exp.compare.file_cache import FileCache
from seven_exp.compare.files import Output
from seven_exp.compare.inference import PAIRED, Inference, as_stated
from seven_exp.compare.published import print_published
from seven_exp.compare.records import FINISHED, Record, cautions, read_runs
from seven_exp.compare.sections import comparison_page, relative_to
from seven_exp.compare.summary import Row, headline, summarize
from seven_exp.compare.table import print_table

DEFAULT_BASELINE = "magnitude"
DEFAULT_PORT = 8000


def compare(
    folders: Sequence[Path],
    metric: str | None = None,
    baseline: str | None = None,
    output: Output | None = None,
    *,
    published: bool = False,
    wandb: str | None = None,
    inference: Inference = PAIRED,
) -> None:
    """Write the files, print the table, and report on stderr what was left out.

    Raises:
        ValueError: A folder is missing or holds no finished run, a name is unknown, the files
            can't be written, or W&B has no login.
        ConnectionError: W&B can't be reached.
    """
    if wandb is not None:
        from seven_exp.compare.dashboard import build_dashboard, parse_place, publish, require_login

        entity, project = parse_place(wandb)
        try:
            require_login()
        except ValueError as error:
            raise ValueError(f"--wandb: {error}") from error
    cache = FileCache()
    found = read(folders, metric, baseline, cache, inference)
    rows, metric, baseline = found.rows, found.metric, found.baseline
    output = output or Output()
    folder = output.folder or folders[0]
    try:
        written = output.write(
            *(folder, rows, metric, baseline, found.conclusions),
            lambda: found.page(relative_to(folder), cache),
        )
    except OSError as error:
        raise ValueError(f"--output is '{folder}': can't write there: {error.strerror}") from error
    # The files come first, because a pipe to `head` closes while the table is printed.
    print_table(rows, metric, baseline)
    found.conclusions.print()
    if published:
        print_published(rows, metric)
    if left_out := [*found.left_out, *cache.broken_files()]:
        print(f"left out: {', '.join(left_out)}", file=sys.stderr)
    for caution in cautions(found.records, metric):
        print(f"note: {caution}", file=sys.stderr)
    print(f"written to {folder}: {', '.join(written)}")
    if wandb is not None:
        addresses = publish(build_dashboard(rows, metric, baseline, entity, project))
        print(f"on W&B: {', '.join(addresses)}")


def serve(
    folders: Sequence[Path],
    metric: str | None = None,
    baseline: str | None = None,
    port: int | None = None,
    inference: Inference = PAIRED,
) -> None:
    """Serve the page until it is interrupted.

    Raises:
        ValueError: A folder is missing or holds no finished run yet, a name is unknown, or the
            port is taken.
    """
    from seven_exp.compare.serve import Server

    cache = FileCache()

    def render() -> str:
        return read(folders, metric, baseline, cache, inference).page(server.link, cache)

    port = DEFAULT_PORT if port is None else port
    read(folders, metric, baseline, cache, inference)
    try:
        server = Server(folders, render, port)
    except (OSError, OverflowError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--port is {port}: {words.lower()}; 0 chooses any free one") from error
    with server:
        print(f"{server.address} (stop with Ctrl-C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


@dataclass(frozen=True)
class Comparison:
    """Records, including those of runs without a result, with the options of a comparison."""

    records: list[Record]
    rows: list[Row]
    metric: str
    baseline: str | None
    left_out: list[str]
    inference: Inference

    @cached_property
    def conclusions(self) -> Conclusions:
        """The planned contrasts, and mean ranks over several tasks."""
        return Conclusions.of(self.rows, self.metric, self.inference)

    def page(self, link: Callable[[Path], str], cache: FileCache | None = None) -> str:
        """The page; ``link`` makes the addresses of its links."""
        return comparison_page(
            *(self.records, self.metric, self.baseline, self.left_out, link, cache),
            self.conclusions,
        )


def read(
    folders: Sequence[Path],
    metric: str | None,
    baseline: str | None,
    cache: FileCache | None = None,
    inference: Inference = PAIRED,
) -> Comparison:
    """Read the records and choose the options that weren't given.

    Raises:
        ValueError: A folder is missing or holds no finished run, or a name is unknown.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder '{folder}'")
    records, left_out = read_runs(folders, cache)
    if not any(record.status == FINISHED for record in records):
        reasons = f" (left out: {', '.join(left_out)})" if left_out else ""
        raise ValueError(f"no finished run below {', '.join(map(str, folders))}{reasons}")
    metric = metric or headline(records)
    if baseline is None:
        took_part = any(r.pruner == DEFAULT_BASELINE and metric in r.metrics for r in records)
        baseline = DEFAULT_BASELINE if took_part else None
    inference, unclear = as_stated(records, inference, metric)
    rows, notes = summarize(records, metric, baseline, inference=inference)
    found = Comparison(records, rows, metric, baseline, [*left_out, *notes, *unclear], inference)
    return replace(found, left_out=[*found.left_out, *found.conclusions.notes])
