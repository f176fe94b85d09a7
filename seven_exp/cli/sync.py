"""``seven-exp sync FOLDER...``: upload what W&B has logged offline, and leave views of sweeps."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from seven_exp.cli.arguments import Parser
from seven_exp.cli.sweep_view import leave_view
from seven_exp.config import Tracker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 if W&B failed, or 2 for a mistake, named in one line."""
    parser = Parser(
        prog="seven-exp sync",
        description="Upload the offline W&B runs below some folders, each once (wandb sync), and "
        "leave a view of each of their sweeps.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            print(f"error: no folder '{folder}'", file=sys.stderr)
            return 2
    runs = offline_runs(options.folders)
    if not runs:
        print("no offline W&B run below these folders that is not yet uploaded")
        return 0

    from seven_exp.tracking import logged_in

    environment = dict(os.environ)  # `logged_in` silences W&B
    if not logged_in():
        print("error: not logged in to W&B: wandb login", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
    done = subprocess.run(command, env=environment, check=False)
    left = offline_runs(options.folders)
    print(f"{len(runs) - len(left)} of {len(runs)} runs uploaded", flush=True)
    for folder, tracker in _sweeps([run.parent.parent for run in runs if run not in left]).items():
        leave_view(folder, tracker)
    return 1 if left or done.returncode else 0


def offline_runs(folders: Sequence[Path]) -> list[Path]:
    """Folders of W&B's offline runs that it has not uploaded, each once."""
    found = {
        path.parent.resolve()
        for folder in folders
        for path in folder.rglob("wandb/offline-run-*/run-*.wandb")
        if not path.with_name(f"{path.name}.synced").exists()
    }
    return sorted(found)


def _sweeps(runs: Sequence[Path]) -> dict[Path, Tracker]:
    """The sweeps of some runs, and how they are logged."""
    from seven_exp.tracking import Sweep

    found: dict[Path, Tracker] = {}
    for run in runs:
        sweep = Sweep.of(run)
        if sweep is None or sweep.tunes:
            continue
        with suppress(OSError, ValueError, KeyError):
            config = json.loads((run / "results.json").read_text("utf-8"))["config"]["tracker"]
            found[sweep.folder] = Tracker.model_validate({**config, "mode": "online"})
    return found
