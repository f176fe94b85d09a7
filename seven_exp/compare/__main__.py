"""``python -m seven_exp.compare FOLDER...``: print a table; write comparison.csv, .png, .html."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from seven_exp.compare.page import write_html
from seven_exp.compare.plot import write_png
from seven_exp.compare.records import read_records
from seven_exp.compare.summary import summarize
from seven_exp.compare.table import print_table, write_csv

DEFAULT_BASELINE = "magnitude"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for a mistake, named in one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m seven_exp.compare",
        description="Compare the runs recorded below some folders.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--metric", default="accuracy", help="a final metric (accuracy)")
    parser.add_argument(
        "--baseline", help=f"method to subtract ({DEFAULT_BASELINE}, where it took part)"
    )
    parser.add_argument("--output", type=Path, help="where files go (the first FOLDER)")
    options = parser.parse_args(arguments)
    try:
        compare(options.folders, options.metric, options.baseline, options.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(
    folders: Sequence[Path],
    metric: str = "accuracy",
    baseline: str | None = None,
    output: Path | None = None,
) -> None:
    """Print the table and write the files.

    Raises:
        ValueError: A folder is missing, holds no finished run, or a name is unknown.
        OSError: The files can't be written.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder '{folder}'")
    records, notes = read_records(folders)
    for note in notes:
        print(note, file=sys.stderr)
    if not records:
        raise ValueError(f"no finished run below {', '.join(map(str, folders))}")
    if baseline is None and any(r.values["pruner"] == DEFAULT_BASELINE for r in records):
        baseline = DEFAULT_BASELINE
    rows = summarize(records, metric, baseline)
    output = output or folders[0]
    print_table(rows, metric, baseline)
    write_csv(output / "comparison.csv", rows, metric, baseline)
    write_png(output / "comparison.png", rows, metric)
    write_html(output / "comparison.html", rows, records, metric, baseline)
    print(f"written: {output / 'comparison'}.csv, .png, .html")


if __name__ == "__main__":
    sys.exit(main())
