"""A tracker: one file of comma-separated losses beside the record."""

from collections.abc import Mapping
from typing import Any

from seven_exp.config import Tracker as Settings
from seven_exp.tracking import TRACKERS, RunInfo, Value


@TRACKERS.register("own_csv")
class OwnCsv:
    """Writes ``losses.csv`` into the run's folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def start(self, run: RunInfo) -> None:
        """The run's name, config, folder and number of finished steps are in ``run``."""
        self.path = run.folder / "losses.csv"
        if not run.resumed:
            self.path.write_text("step,loss\n")

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Values of a step."""
        if "loss" in values:
            with self.path.open("a") as file:
                file.write(f"{step},{values['loss']}\n")

    def finish(self, record: Mapping[str, Any]) -> None:
        """The record is that of ``results.json``."""
