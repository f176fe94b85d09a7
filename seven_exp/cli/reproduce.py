"""``seven-exp reproduce RUN...``: a record's command, and whether it gives the same figures.

With ``--row`` the runs are those of a row of a comparison.
"""

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seven_exp.cli.arguments import Parser
from seven_exp.config import ConfigError, RunConfig
from seven_exp.messages import nearest, one_line

if TYPE_CHECKING:
    from seven_exp.runs.reproduction import Figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 if a figure differs, or 2 for a mistake, named in one line."""
    parser = Parser(
        prog="seven-exp reproduce",
        description="Print the command of a finished run and what has changed since; with --run "
        "execute it and compare the figures.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument(
        "--row",
        metavar="'METHOD SPARSITY'",
        help="all seeds of a row of a comparison, such as 'seven_dyn 90%%', of the runs below RUN",
    )
    parser.add_argument("--run", action="store_true", help="repeat the run, without a tracker")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("reproduced"),
        help="folder of the repeated runs (reproduced)",
    )
    parser.add_argument(
        "--plugins", action="store_true", help="run the code that the run's record names"
    )
    options = parser.parse_args(arguments)
    same = True
    try:
        given = [run.parent if run.name == "results.json" else run for run in options.runs]
        runs = given if options.row is None else _of_row(given, options.row)
        for folder in runs:
            same &= _reproduce(folder, options.output, run=options.run, trusted=options.plugins)
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        from seven_exp.cli.faults import stop_if_explained

        stop_if_explained(error)
        raise
    return 0 if same else 1


def _of_row(folders: Sequence[Path], name: str) -> list[Path]:
    """The folders of a row's runs.

    Raises:
        ValueError: There is no such row, or no finished run.
    """
    from seven_exp.compare.comparison import read
    from seven_exp.compare.table import percent

    rows = read(folders, None, None).rows
    names = [f"{row.method} {percent(row.sparsity)}" for row in rows]
    if name not in names:
        raise ValueError(f"--row is '{name}': {nearest(name, names)}")
    named = [row for row, own in zip(rows, names, strict=True) if own == name]
    if len(tasks := sorted({" on ".join(row.task) for row in named})) > 1:
        raise ValueError(f"--row is '{name}': {', '.join(tasks)} have one: name fewer folders")
    return [record.folder for row in named for record in row.records]


def _reproduce(folder: Path, output: Path, *, run: bool, trusted: bool) -> bool:
    """Print a run's command, and repeat it if asked; returns whether all figures are the same."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from seven_exp.cli.faults import explain
    from seven_exp.cli.main import conf_dir
    from seven_exp.cli.recorded import arguments, composed, lost
    from seven_exp.runs.restore import read_record

    record = read_record(folder)
    conf = conf_dir()
    try:
        overrides = arguments(record["config"], conf)
        config = composed(overrides, conf)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"'{folder}': {explain(error)}") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"'{folder}': the record does not hold the whole config") from error
    directory = Path(record.get("directory") or ".")
    if directory.is_dir() and directory.resolve() != Path.cwd().resolve():
        print(f"cd {shlex.quote(str(directory))}")
    print(f"seven-exp train {shlex.join(overrides)}")
    if "command" in record:
        print(f"# it was: {record['command']}")
    for key in lost(record["config"], config.model_dump()):
        print(f"# not the same today: {key}")
    if config.plugins and not trusted:
        _refuse_plugins(config, record.get("directory"), needed=run)
        return True
    folder, output = folder.resolve(), output.resolve()
    with chdir(directory if directory.is_dir() else "."):
        _say_changes(record, config, needed=run)
        return _repeat(record, config, folder, output / folder.name) if run else True


def _refuse_plugins(config: RunConfig, directory: str | None, *, needed: bool) -> None:
    from seven_exp.runs.plugins import described

    named = ", ".join(described(plugin, directory) for plugin in config.plugins)
    if needed:
        raise ConfigError(f"plugins: the record names code: {named}; read it, then pass --plugins")
    print(f"# it runs code, so the hash is not checked here (--plugins does): {named}")


def _say_changes(record: Mapping[str, Any], config: RunConfig, *, needed: bool) -> None:
    from seven_exp.runs.check import check
    from seven_exp.runs.identity import run_hash
    from seven_exp.runs.reproduction import changes
    from seven_exp.training.world import device_of, name_of

    try:
        name = name_of(device_of(config.device))
    except ConfigError:
        name = "none"
    for change in changes(record, name):
        print(f"# {change}")
    try:
        check(config)
        identity = run_hash(config)
    except (ConfigError, OSError) as error:
        if needed:
            raise
        print(f"# it can't run here: {error}")
        return
    if identity == record["run_hash"]:
        print(f"# the same run hash, {identity}")
    else:
        print(
            f"# another run hash ({record['run_hash']} then, {identity} now): the data, the code "
            "of a plugin or the meaning of a key has changed"
        )


def _repeat(record: Mapping[str, Any], config: RunConfig, then: Path, folder: Path) -> bool:
    from seven_exp.runs.reproduction import figures, same_tensors, verdict
    from seven_exp.runs.run import run_experiment
    from seven_exp.tracking import LocalRecord

    if folder.exists():
        raise ConfigError(f"'{folder}' exists: choose another --output, or remove it")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    again = run_experiment(config, folder, LocalRecord())
    found = figures(record, again)
    _show(found)
    words = verdict(found, same_tensors(then, folder))
    print(words)
    print(f"written: {folder}")
    return words.startswith("reproduced")


def _show(found: "Sequence[Figure]") -> None:
    from seven_exp.console import print_table

    def shown(number: float | None) -> str:
        return "" if number is None else f"{number:.9g}"

    lines = [[one.name, *map(shown, (one.then, one.now, one.difference))] for one in found]
    print_table(("figure", "then", "now", "difference"), lines, words=("figure",))
