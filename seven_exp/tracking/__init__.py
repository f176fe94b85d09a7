"""Where figures go: the record on disk, and Weights & Biases behind a guard."""

from seven_exp.config import Tracker as TrackerConfig
from seven_exp.tracking.guarded import Guarded
from seven_exp.tracking.interface import Histogram, RunInfo, Tracker, Trackers, Value
from seven_exp.tracking.local import LocalRecord, RecordError, plain, write_json, writing
from seven_exp.tracking.weights_and_biases import WandbTracker

__all__ = [
    "Guarded",
    "Histogram",
    "LocalRecord",
    "RecordError",
    "RunInfo",
    "Tracker",
    "Trackers",
    "Value",
    "WandbTracker",
    "build_tracker",
    "plain",
    "write_json",
    "writing",
]


def build_tracker(config: TrackerConfig) -> Tracker:
    """The local record first, then W&B unless it is disabled."""
    trackers: list[Tracker] = [LocalRecord()]
    if config.mode != "disabled":
        wandb = WandbTracker(config.mode, config.project, config.entity)
        trackers.append(Guarded(wandb))
    return Trackers(trackers)
