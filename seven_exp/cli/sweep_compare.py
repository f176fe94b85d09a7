"""Compares the runs at the end of every sweep, also in a view on W&B."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from seven_exp.cli.sweep_view import leave_view
from seven_exp.config import Tracker
from seven_exp.runs.ledger import Ledger


@dataclass
class _Sweep:
    """A multirun.

    Attributes:
        folder: Folder of its jobs.
        ledger: Finds the folders of their runs.
        tracker: Section ``tracker`` of their config.
        compared: Whether its table has been printed.
        left: Number of jobs whose runs other processes are still executing.
    """

    folder: Path
    ledger: Ledger
    tracker: DictConfig
    compared: bool = False
    left: int = 0

    def gather(self) -> bool:
        """Link the records that other processes have finished; return whether there are any."""
        self.compared = True
        self.left = self.ledger.gather(self.folder)
        return self.left < self.jobs

    def leave_view(self) -> None:
        """Leave a view on W&B."""
        with suppress(ValueError):  # a job has reported it
            leave_view(self.folder, Tracker.model_validate(dict(self.tracker)))

    @property
    def jobs(self) -> int:
        """Number of jobs: Hydra makes a folder in the folder of each."""
        return sum(1 for _ in self.folder.glob("*/**/.hydra"))


_sweeps: list[_Sweep] = []


class CompareAfterMultirun(Callback):
    """Hydra callback: compares the records after all jobs of a multirun."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Store the folder: Hydra calls no callback at the end of a sweep with a failed job."""
        root = Path(config.hydra.runtime.cwd, Path(config.output_root or ".").expanduser())
        _sweeps.append(_Sweep(Path(config.hydra.sweep.dir), Ledger(root), config.tracker))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write the pictures to the sweep's folder."""
        from seven_exp.cli.compare import main

        if _sweeps[-1].gather() and main([str(config.hydra.sweep.dir)]) == 0:
            _sweeps[-1].leave_view()


def compare_begun() -> None:
    """Compare the finished runs of a multirun in which a job failed."""
    from seven_exp.compare.comparison import compare

    for sweep in _sweeps:
        with suppress(ValueError, OSError):
            if not sweep.compared and sweep.gather():
                compare([sweep.folder])
                sweep.leave_view()


def left_elsewhere() -> str | None:
    """One line with the number of runs that other processes are executing; None if it is 0."""
    left, jobs = sum(sweep.left for sweep in _sweeps), sum(sweep.jobs for sweep in _sweeps)
    if left == 0:
        return None
    return (
        f"{left} of {jobs} runs {'is' if left == 1 else 'are'} being done by another process: "
        "the same command finishes the table"
    )
