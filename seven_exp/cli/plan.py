"""``seven-exp plan KEY=VALUE ...``: how much memory a run will take, and whether it fits."""

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from seven_exp.cli.arguments import Parser
from seven_exp.cli.main import after_training, conf_dir

if TYPE_CHECKING:
    from seven_exp.config import RunConfig
    from seven_exp.runs.memory import Need

_UNITS = {
    **{"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40},
}


def size(text: str) -> int:
    """Bytes of a size such as "24GB" or "80GiB".

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text.strip(), re.IGNORECASE)
    bytes_ = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if bytes_ < 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no size: give a number with MB, GB or GiB, such as 24GB"
        )
    return bytes_


def ranks(text: str) -> int:
    """A number of processes.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of processes: choose 1 or more")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns 0, or exits with 2 for a mistake, named in one line on stderr."""
    parser = Parser(
        prog="seven-exp plan",
        usage="%(prog)s [prune] [--ranks N] [--memory SIZE] [KEY=VALUE ...]",
        description="Compute how much memory a run of seven-exp train, or with the word prune one "
        "of seven-exp prune, holds on its device, and whether it fits. Nothing runs: neither "
        "weights nor data are read. All keys are those of the command that is planned.",
        epilog="example: seven-exp plan prune model=llama model.dtype=bfloat16 pruner=sparsegpt "
        "--memory 24GB",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ranks", type=ranks, default=1, metavar="N",
        help="processes that share weights, gradients and all states (trainer.sharding=fsdp)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=size, metavar="SIZE",
        help="of the device, such as 24GB or 80GiB (this machine's GPU, or else its RAM)",
    )  # fmt: skip
    options, rest = parser.parse_known_args(arguments)
    if {"-m", "--multirun"} & set(rest):
        parser.error("seven-exp plan plans a single run: leave out -m")
    if rest[:1] in (["train"], ["prune"]):
        command, *rest = rest
        rest = after_training(rest) if command == "prune" else rest
    if options.ranks > 1:
        rest = [*rest, "trainer.sharding=fsdp"]

    from seven_exp.cli import train

    def act(values: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
        config = train.checked(values, HydraConfig.get().overrides.task)
        with train.no_collection():
            from seven_exp.runs.memory import need_of
        need = need_of(config, options.ranks)
        # First, because it may find a mistake.
        verdict = _verdict(config, need, options.ranks, options.memory)
        _show(config, need, options.ranks, verdict)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as nowhere:
        sys.argv = [sys.argv[0], *rest, f"hydra.run.dir={nowhere}", "hydra.output_subdir=null"]
        sys.argv.append("hydra/job_logging=none")
        train.main(conf_dir(), act)
    return 0


def _show(config: "RunConfig", need: "Need", ranks: int, verdict: str) -> None:
    from rich import box
    from rich.table import Table

    from seven_exp.console import table_console

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, held in need.parts.items():
        if held:
            table.add_row(name, _shown(held))
    table.add_section()
    table.add_row("total" if ranks == 1 else f"on each of {ranks} devices", _shown(need.total))
    console = table_console()
    how = ", one block at a time" if need.by_block else ""
    pruner = f"{config.pruner.name} on {config.model.title}{how}"
    counts = f"{need.parameters:,} parameters, {need.prunable:,} of them prunable"
    console.print(f" {pruner}: {counts}", highlight=False, soft_wrap=True)
    console.print(table)
    lines = [f"not counted: {'; '.join(need.besides)}"] if need.besides else []
    for line in [*lines, verdict]:
        console.print(f" {line}", highlight=False, soft_wrap=True)


def _verdict(config: "RunConfig", need: "Need", ranks: int, memory: int | None) -> str:
    """Whether it fits, and if not, what would."""
    from seven_exp.runs.memory import changes, memory_of

    size, device = (memory, "") if memory is not None else memory_of(config.device)
    into = f"{_shown(size)}{device}"
    left = size - need.total
    if left >= 0:
        return f"fits into {into}: {_shown(left)} left" + (" for the rest" if need.besides else "")
    found = " or ".join(changes(config, need, ranks, size))
    advice = found or "a device with more memory, or a smaller model"
    return f"does not fit into {into}: {_shown(-left)} too much; what would fit: {advice}"


def _shown(size: int) -> str:
    for unit in ("GB", "MB", "kB"):
        if size >= _UNITS[unit.upper()]:
            return f"{size / _UNITS[unit.upper()]:,.1f} {unit}"
    return f"{size} B"
