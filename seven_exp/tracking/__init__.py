"""Trackers: the record on disk, and others, such as W&B, whose failures are contained."""

from seven_exp.config import Tracker as TrackerConfig
from seven_exp.tracking.described import Sweep, described, sweep_name
from seven_exp.tracking.guarded import Guarded
from seven_exp.tracking.interface import Histogram, RunInfo, Tracker, Trackers, Value
from seven_exp.tracking.local import LocalRecord, RecordError, plain, write_json, writing
from seven_exp.tracking.registry import TRACKERS
from seven_exp.tracking.replay import replay
from seven_exp.tracking.through_accelerate import AccelerateTracker
from seven_exp.tracking.weights_and_biases import WandbTracker, logged_in, mode_of, place_of

__all__ = [
    "TRACKERS",
    "AccelerateTracker",
    "Guarded",
    "Histogram",
    "LocalRecord",
    "RecordError",
    "RunInfo",
    "Sweep",
    "Tracker",
    "Trackers",
    "Value",
    "WandbTracker",
    "build_tracker",
    "described",
    "logged_in",
    "mode_of",
    "place_of",
    "plain",
    "replay",
    "sweep_name",
    "write_json",
    "writing",
]


def build_tracker(config: TrackerConfig) -> Tracker:
    """The local record, W&B unless the config or ``WANDB_MODE`` disables it, and all others.

    Raises:
        ConfigError: A tracker's package is not installed.
        ValueError: A tracker is unknown.
    """
    trackers: list[Tracker] = [LocalRecord()]
    if (mode := mode_of(config)) != "disabled":
        trackers.append(Guarded(WandbTracker(mode, config)))
    trackers += [Guarded(TRACKERS[name](config)) for name in config.also]
    return Trackers(trackers)
