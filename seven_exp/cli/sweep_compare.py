"""A comparison at the end of every sweep, without being asked."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from seven_exp.runs.ledger import Ledger


@dataclass
class _Sweep:
    """A multirun.

    Attributes:
        folder: Of its jobs.
        ledger: Knows where their runs are.
        compared: Whether its table is drawn.
        left: Jobs whose runs other processes are still at.
    """

    folder: Path
    ledger: Ledger
    compared: bool = False
    left: int = 0

    def gather(self) -> bool:
        """Fetch what other processes have done by now; whether there is anything to compare."""
        self.compared = True
        self.left = self.ledger.gather(self.folder)
        return self.left < self.jobs

    @property
    def jobs(self) -> int:
        """How many there are: Hydra leaves a folder in that of each."""
        return sum(1 for _ in self.folder.glob("*/**/.hydra"))


_sweeps: list[_Sweep] = []


class CompareAfterMultirun(Callback):
    """Hydra's callback: once all jobs of a multirun are done, compare their records."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the folder: Hydra calls nobody at the end of a sweep with a failed job."""
        root = Path(config.hydra.runtime.cwd, Path(config.output_root).expanduser())
        _sweeps.append(_Sweep(Path(config.hydra.sweep.dir), Ledger(root)))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write the pictures into the sweep's folder."""
        from seven_exp.cli.compare import main

        if _sweeps[-1].gather():
            main([str(config.hydra.sweep.dir)])


def compare_begun() -> None:
    """Compare what there is of a multirun that some job of has failed."""
    from seven_exp.compare.comparison import compare

    for sweep in _sweeps:
        with suppress(ValueError, OSError):
            if not sweep.compared and sweep.gather():
                compare([sweep.folder])


def left_elsewhere() -> str | None:
    """How many jobs of the multirun other processes are at, in a line; None: of none."""
    left, jobs = sum(sweep.left for sweep in _sweeps), sum(sweep.jobs for sweep in _sweeps)
    if left == 0:
        return None
    return (
        f"{left} of {jobs} runs {'is' if left == 1 else 'are'} being done by another process: "
        "the same command finishes the table"
    )
