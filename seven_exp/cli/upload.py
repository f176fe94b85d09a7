"""``seven-exp upload FOLDER...``: log finished runs with a tracker that they ran without."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seven_exp.cli.arguments import Parser
from seven_exp.config import ConfigError, Tracker
from seven_exp.messages import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 if a run did not arrive, or 2 for a mistake."""
    parser = Parser(
        prog="seven-exp upload",
        description="Log finished runs to W&B, or another tracker, from their folders. A run that "
        "is uploaded again replaces itself on W&B.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--to", default="wandb", metavar="TRACKER", help="(wandb)")
    parser.add_argument("--project", help="(W&B's setting, or seven_exp)")
    parser.add_argument("--entity", help="user or team on W&B (the account's default)")
    parser.add_argument(
        "--artifacts", choices=("none", "masks", "model"), default="masks", help="on W&B (masks)"
    )
    options = parser.parse_args(arguments)
    config = Tracker(
        mode="online", project=options.project, entity=options.entity, artifacts=options.artifacts
    )
    try:
        runs = list(_runs(options.folders))
        arrived = [_upload(folder, record, options.to, config) for folder, record in runs]
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{sum(arrived)} of {len(arrived)} runs logged to {options.to}")
    return 0 if all(arrived) else 1


def _runs(folders: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The finished runs below some folders, each once."""
    from seven_exp.runs.restore import read_record

    seen = set()
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"no folder '{folder}'")
        paths = sorted(folder.rglob("results.json"))
        if not paths:
            raise ConfigError(f"no run below '{folder}'")
        for path in paths:
            try:
                record = read_record(path.parent)
            except ValueError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            if record["run_hash"] not in seen:
                seen.add(record["run_hash"])
                yield path.parent, record


def _upload(folder: Path, record: dict[str, Any], name: str, config: Tracker) -> bool:
    from seven_exp.compare.metrics import smaller_is_better
    from seven_exp.tracking import TRACKERS, Guarded, WandbTracker, logged_in, replay

    if name == "wandb":
        if not logged_in():
            raise ConfigError("not logged in to W&B: wandb login")
        wandb = WandbTracker("online", config)
        guarded = Guarded(wandb)
    else:
        wandb, guarded = None, Guarded(TRACKERS[name](config))
    replay(folder, record, guarded, smaller_is_better(str(record.get("metric", "accuracy"))))
    return guarded.works and (wandb is None or not wandb.offline)
