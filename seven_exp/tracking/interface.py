"""The interface of trackers, which log a run's metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Histogram(NamedTuple):
    """A distribution at one moment.

    Attributes:
        counts: Number of members of each bin.
        edges: Edges of the bins, one more than ``counts``.
    """

    counts: Sequence[int]
    edges: Sequence[float]


Value = float | Histogram
"""What may be logged under a name."""


@dataclass(frozen=True)
class RunInfo:
    """What a tracker gets when a run starts.

    Attributes:
        name: Short, for people.
        group: Runs that belong together, unless the tracker has another setting.
        tags: For filtering.
        config: The resolved config as plain containers.
        folder: The run's own folder.
        metric: The headline metric.
        lower_is_better: Whether lower values of it are better.
        id: Unique, and the same when the run continues after an interruption.
        resumed: Number of steps whose metrics are kept; later ones will be logged again. 0: none.
        job: "train", "prune" or "tune".
        effective: Dotted key -> what a null or a fraction of the config stands for in this run.
        unread: Dotted keys of the config that the run never reads.
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
    job: str = "train"
    effective: Mapping[str, Any] = field(default_factory=dict)
    unread: Sequence[str] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What the run reads, with the keys of the command line and no null."""
        names = {key.removesuffix(".name") for key in self.unread}
        below = tuple(f"{key}." for key in self.unread)
        used = {
            key: value
            for key, value in command_line_keys(self.config).items()
            if value not in (None, "auto") and key not in names and not key.startswith(below)
        }
        return {**self.effective, **used}


def command_line_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config with the keys of the command line: ``group`` for its name, ``group.key``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = command_line_keys(value)
            flat |= {key if k == "name" else f"{key}.{k}": v for k, v in inner.items()}
        else:
            flat[key] = value
    return flat


class Tracker(Protocol):
    """Logs a run's metrics."""

    def start(self, run: RunInfo) -> None:
        """A run begins."""

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Log values after ``step`` optimizer steps."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """The run is over; ``record["status"]`` is "finished", "failed" or "interrupted"."""


class Trackers:
    """Several trackers as one; they are called in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def start(self, run: RunInfo) -> None:
        """Call all."""
        for tracker in self.trackers:
            tracker.start(run)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Call all."""
        for tracker in self.trackers:
            tracker.log(step, values)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Call all."""
        for tracker in self.trackers:
            tracker.finish(record)
