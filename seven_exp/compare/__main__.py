"""``python -m seven_exp.compare FOLDER...``: print a table; write comparison.csv, .png, .html."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from seven_exp.compare.page import write_html
from seven_exp.compare.plot import write_png
from seven_exp.compare.published import print_published
from seven_exp.compare.records import read_records
from seven_exp.compare.sections import comparison_page, relative_to
from seven_exp.compare.summary import headline, summarize
from seven_exp.compare.table import print_table, write_csv

DEFAULT_BASELINE = "magnitude"


class _Parser(argparse.ArgumentParser):
    """Without the usage before each error: a mistake costs one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for a mistake, named in one line on stderr."""
    parser = _Parser(
        prog="python -m seven_exp.compare",
        description="Compare the runs recorded below some folders.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--metric", help="a final metric (the task's headline)")
    parser.add_argument(
        "--baseline", help=f"method to subtract ({DEFAULT_BASELINE}, where it took part)"
    )
    parser.add_argument(
        "--published", action="store_true", help="also print the figures of SEVEN's authors beside"
    )
    parser.add_argument("--output", type=Path, help="where files go (the first FOLDER)")
    options = parser.parse_args(arguments)
    try:
        compare(
            options.folders,
            options.metric,
            options.baseline,
            options.output,
            published=options.published,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(
    folders: Sequence[Path],
    metric: str | None = None,
    baseline: str | None = None,
    output: Path | None = None,
    *,
    published: bool = False,
) -> None:
    """Write the files, print the table, and say on stderr what was left out.

    Raises:
        ValueError: A folder is missing or holds no finished run, a name is unknown, or the files
            can't be written.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder '{folder}'")
    records, left_out = read_records(folders)
    if not records:
        reasons = f" (left out: {', '.join(left_out)})" if left_out else ""
        raise ValueError(f"no finished run below {', '.join(map(str, folders))}{reasons}")
    metric = metric or headline(records)
    if baseline is None:
        took_part = any(r.pruner == DEFAULT_BASELINE and metric in r.metrics for r in records)
        baseline = DEFAULT_BASELINE if took_part else None
    rows, notes = summarize(records, metric, baseline)
    output = output or folders[0]
    try:
        write_csv(output / "comparison.csv", rows, metric)
        write_png(output / "comparison.png", rows, metric)
        page = comparison_page(records, metric, baseline, left_out, relative_to(output))
        write_html(output / "comparison.html", page)
    except OSError as error:
        raise ValueError(f"--output is '{output}': can't write there: {error.strerror}") from error
    # The files come first: a pipe to `head` closes while the table is printed.
    print_table(rows, metric, baseline)
    if published:
        print_published(rows, metric)
    if left_out or notes:
        print(f"left out: {', '.join([*left_out, *notes])}", file=sys.stderr)
    print(f"written: {output / 'comparison'}.csv, .png, .html")


if __name__ == "__main__":
    sys.exit(main())
