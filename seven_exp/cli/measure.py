"""``seven-exp measure RUN_OR_EXPORT``: latency, throughput, memory and size, or accuracies."""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seven_exp.cli.arguments import Parser
from seven_exp.config import ConfigError, Evaluation
from seven_exp.messages import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for a mistake, named in one line on stderr."""
    parser = Parser(
        prog="seven-exp measure",
        description="Measure a pruned model against the dense one, alternately, on this machine; "
        "or with --tasks the zero-shot accuracies of a language model.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN_OR_EXPORT")
    parser.add_argument(
        "--batch", type=int, help="batch size for throughput (32) or of the tasks (1)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (auto)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="(float32)"
    )
    parser.add_argument("--repeats", type=int, default=20, help="rounds (20)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    parser.add_argument(
        "--plugins", action="store_true", help="run the code that the run's record names"
    )
    parser.add_argument(
        "--tasks", metavar="TASK,...", help="tasks of lm-evaluation-harness, such as boolq,rte"
    )
    parser.add_argument(
        "--include-path", type=Path, metavar="FOLDER", help="YAML files with your own tasks"
    )
    parser.add_argument("--limit", type=int, help="number of examples of each task (all)")
    options = parser.parse_args(arguments)
    # The profiler that counts bytes prints on stderr that it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    try:
        for key, least in (("batch", 1), ("repeats", 2), ("threads", 1), ("limit", 1)):
            value = getattr(options, key)
            if value is not None and value < least:
                raise ConfigError(f"--{key} is {value}: choose {least} or more")
        if not options.folder.is_dir():
            raise ConfigError(f"no folder '{options.folder}'")

        path = _evaluated(options) if options.tasks else _timed(options)
    except (ConfigError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"written: {path}")
    return 0


def _evaluated(options: Namespace) -> Path:
    from seven_exp.console import show_accuracies
    from seven_exp.measure.zero_shot import evaluate_tasks

    tasks = Evaluation(
        tasks=[name for name in options.tasks.split(",") if name],
        include_path=None if options.include_path is None else str(options.include_path),
        limit=options.limit,
        batch_size=options.batch or 1,
    )
    facts, path = evaluate_tasks(
        options.folder, tasks, options.device, trust_plugins=options.plugins
    )
    show_accuracies(facts["harness"])
    return path


def _timed(options: Namespace) -> Path:
    from seven_exp.measure.measuring import measure

    facts, path = measure(
        options.folder,
        batch=options.batch or 32,
        device=options.device,
        dtype=options.dtype,
        repeats=options.repeats,
        threads=options.threads,
        trust_plugins=options.plugins,
    )
    _show(facts)
    return path


def _show(facts: Mapping[str, Any]) -> None:
    from seven_exp.console import print_table, table_console

    def speed_up(times: Mapping[str, float]) -> str:
        return f"{times['ratio']:.2f} ({times['ratio_low']:.2f}..{times['ratio_high']:.2f})"

    lines = [
        [
            row["name"],
            f"{row['flops'] / 1e6:,.2f}" if row["flops"] else "",
            f"{row['bytes'] / 1e6:.3f}",
            f"{(row['bytes'] + peak) / 1e6:.2f}"
            if (peak := row["peak_bytes"]) is not None
            else "unknown",
            f"{row['latency']['median'] * 1e3:.3f}",
            speed_up(row["latency"]),
            f"{row['examples_per_second']:,.1f}",
            speed_up(row["batch"]),
        ]
        for row in facts["variants"]
    ]
    heads = (
        *("", "theory: MFLOPs", "weights, MB", "peak, MB", "ms for 1", "as fast (quartiles)"),
        *(f"1/s, batch {facts['batch_size']}", "as fast (quartiles)"),
    )
    print_table(heads, lines, words=("",))
    console = table_console()
    rounds = facts["variants"][0]["latency"]["rounds"]
    where = f"{facts['device']}, {facts['threads']} threads, {facts['dtype']}"
    for line in (f"{where}: medians of {rounds} alternating rounds", *facts["reading"]):
        console.print(f" {line}", highlight=False, soft_wrap=True)
