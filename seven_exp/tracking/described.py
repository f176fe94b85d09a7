"""The description of a run for trackers, from its record and its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seven_exp.files.stored_yaml import read_yaml
from seven_exp.tracking.interface import RunInfo


@dataclass(frozen=True)
class Sweep:
    """The multirun in which a run started, from the files that Hydra leaves.

    Attributes:
        folder: The folder of its runs.
        tunes: Whether its values are chosen by results.
        own: The run's values on the command line that the sweep's other runs do not share.
    """

    folder: Path
    tunes: bool
    own: list[str]

    @classmethod
    def of(cls, run: Path) -> "Sweep | None":
        """The sweep of a run's folder; None if the run was started alone."""
        job = _hydra(run / ".hydra" / "hydra.yaml")
        if job.get("mode") != "MULTIRUN":
            return None
        folder, task = run.parent, job["overrides"]["task"]
        # Hydra's own sweeper stores what it was given; others do not.
        shared = _hydra(folder / "multirun.yaml").get("overrides", job["overrides"])["task"]
        own = [override for override in task if override not in shared]
        return cls(folder, not job["sweeper"]["_target_"].endswith(".BasicSweeper"), own)


def sweep_name(folder: Path) -> str:
    """The end of a sweep's path, by default the date and the time."""
    return "/".join(folder.absolute().parts[-2:])


def described(
    record: Mapping[str, Any],
    folder: Path,
    *,
    lower_is_better: bool,
    id: str,
    resumed: int = 0,
) -> RunInfo:
    """The description of a run for trackers.

    Args:
        record: What its ``results.json`` holds, or will hold.
        folder: Its folder.
        lower_is_better: Whether lower values of its headline metric are better.
        id: See `RunInfo`.
        resumed: See `RunInfo`.
    """
    sweep, task = Sweep.of(folder), f"{record['model']}-{record['dataset']}"
    name = f"{record['pruner']}-{record['sparsity_target']:g}-seed{record['seed']}"
    named = ("pruner=", "sparsity=", "seed=", "model=", "dataset=")
    extra = [] if sweep is None else [own for own in sweep.own if not own.startswith(named)]
    job = "prune" if record["config"]["trainer"].get("max_steps") == 0 else "train"
    return RunInfo(
        name=" ".join([name, *extra]),
        group=f"{task}-{record['pruner']}"
        if sweep is None
        else f"{task} {sweep_name(sweep.folder)}",
        tags=[record["pruner"]],
        config=record["config"],
        folder=folder,
        metric=record.get("metric", "accuracy"),
        lower_is_better=lower_is_better,
        id=id,
        resumed=resumed,
        job="tune" if sweep is not None and sweep.tunes else job,
        effective=record.get("effective", {}),
        unread=record.get("unread", ()),
    )


def _hydra(path: Path) -> Mapping[str, Any]:
    """Hydra's own section of a config that it stored; empty without one."""
    section = read_yaml(path).get("hydra")
    return section if isinstance(section, dict) else {}
