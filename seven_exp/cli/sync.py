"""``seven-exp sync FOLDER...``: upload what W&B has logged offline, below some folders."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from seven_exp.cli.arguments import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 if W&B failed, or 2 for a mistake, named in one line."""
    parser = Parser(
        prog="seven-exp sync",
        description="Upload the offline W&B runs below some folders, each once (wandb sync).",
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

    if not logged_in():
        print("error: not logged in to W&B: wandb login", file=sys.stderr)
        return 2
    done = subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, runs)], check=False)
    left = offline_runs(options.folders)
    print(f"{len(runs) - len(left)} of {len(runs)} runs uploaded")
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
