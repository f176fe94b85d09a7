"""What a tracker is: somewhere that figures go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Histogram(NamedTuple):
    """A distribution at one moment.

    Attributes:
        counts: Members of each bin.
        edges: Ends of the bins, one more than ``counts``.
    """

    counts: Sequence[int]
    edges: Sequence[float]


Value = float | Histogram
"""What may be logged under a name."""


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told when a run starts.

    Attributes:
        name: Short, for people.
        group: Runs that belong together, unless the tracker knows better.
        tags: For filtering.
        config: The resolved config as plain containers.
        folder: The run's own.
        metric: The headline among the metrics.
        lower_is_better: Whether that is so of it.
        id: Unique, and the same when the run goes on after an interruption.
        resumed: Steps done before, whose figures are kept; later ones will come again. 0: none.
    """

    name: str
    group: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    folder: Path
    metric: str = "accuracy"
    lower_is_better: bool = False
    id: str | None = None
    resumed: int = 0


class Tracker(Protocol):
    """Somewhere that figures go."""

    def start(self, run: RunInfo) -> None:
        """A run begins."""

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Figures after ``step`` optimizer steps."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """The run is over; ``record["status"]`` is "finished", "failed" or "interrupted"."""


class Trackers:
    """Several trackers as one; the first ones are told first."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def start(self, run: RunInfo) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.start(run)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.log(step, values)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.finish(record)
