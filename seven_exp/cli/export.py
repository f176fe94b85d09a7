"""``seven-exp export RUN --format FORMAT``: exports a run's model for other programs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seven_exp.cli.arguments import Parser
from seven_exp.config import ConfigError
from seven_exp.export.formats import FORMATS, ExportError, check_format
from seven_exp.messages import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for a mistake, named in one line on stderr."""
    parser = Parser(
        prog="seven-exp export",
        description="Write a finished run's model in a format, read it again and compare it.",
        epilog="formats: " + "; ".join(f"{name}: {what}" for name, what in FORMATS.items()),
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument(
        "--format", required=True, action="append", help=f"{', '.join(FORMATS)}; repeatable"
    )
    parser.add_argument("--output", type=Path, help="the export's folder (RUN/exports/FORMAT)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="dtype of the weights (float32)",
    )
    parser.add_argument("--batches", type=int, help="batches of the test split to compare on (all)")
    parser.add_argument(
        "--plugins", action="store_true", help="run the code that the run's record names"
    )
    options = parser.parse_args(arguments)
    try:
        if options.output is not None and len(options.format) > 1:
            raise ExportError("--output works only with one --format")
        if options.batches is not None and options.batches < 1:
            raise ExportError(f"--batches is {options.batches}: choose 1 or more")
        for name in options.format:
            check_format(name)
        if not options.run.is_dir():
            raise ExportError(f"no folder '{options.run}'")

        from seven_exp.export.exporting import export

        rows = [
            export(
                options.run,
                name,
                dtype=options.dtype,
                output=options.output,
                batches=options.batches,
                trust_plugins=options.plugins,
            )
            for name in options.format
        ]
    except (ConfigError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    _show([facts for facts, _ in rows])
    for _, folder in rows:
        print(f"written: {folder}")
    return 0


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    from seven_exp.console import print_table, table_console

    first = rows[0]
    found, dense, half = first["comparison"], first["bytes_dense"], first["bytes_dense_half"]
    whole, value = first["dtype"] == "float32", f"{found['value']:.4f}"
    lines = [["dense, float32", f"{dense:,}", "100.0%", "", value if whole else ""]]
    if not whole:
        lines.append([f"dense, {first['dtype']}", f"{half:,}", f"{half / dense:.1%}", "", value])
    lines += [
        [
            facts["format"] + ("" if facts["dtype"] == "float32" else f", {facts['dtype']}"),
            f"{facts['bytes']:,}",
            f"{facts['ratio']:.1%}",
            f"{facts['comparison']['difference']:.2g}",
            f"{facts['comparison']['other']:.4f}",
        ]
        for facts in rows
    ]
    heads = ("format", "bytes", "of dense", "max difference", found["metric"])
    print_table(heads, lines, words=("format",))
    console = table_console()
    console.print(f" compared on {found['examples']} examples of the test split", highlight=False)
    for facts in rows:
        for part in facts.get("shrunk", ())[:8]:
            console.print(
                f" {part['name']}: {part['before']} -> {part['after']} {part['unit']}",
                highlight=False,
                soft_wrap=True,
            )
