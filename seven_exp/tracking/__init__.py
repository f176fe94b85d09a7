"""Trackers: the record on disk, and others, such as W&B, whose failures are contained."""

import os

from seven_exp.config import Tracker as TrackerConfig
from seven_exp.tracking.guarded import Guarded
from seven_exp.tracking.interface import Histogram, RunInfo, Tracker, Trackers, Value, titles
from seven_exp.tracking.local import LocalRecord, RecordError, plain, write_json, writing
from seven_exp.tracking.registry import TRACKERS
from seven_exp.tracking.replay import replay
from seven_exp.tracking.through_accelerate import AccelerateTracker
from seven_exp.tracking.weights_and_biases import WandbTracker, logged_in

__all__ = [
    "TRACKERS",
    "AccelerateTracker",
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
    "logged_in",
    "plain",
    "replay",
    "titles",
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
    environment = os.environ.get("WANDB_MODE")
    if "disabled" not in (config.mode, environment):
        offline = config.mode == "offline" or (
            config.mode is None and environment in ("offline", "dryrun")
        )
        wandb = WandbTracker(
            "offline" if offline else "online",
            config.project,
            config.entity,
            config.group,
            config.tags,
        )
        trackers.append(Guarded(wandb))
    trackers += [Guarded(TRACKERS[name](config)) for name in config.also]
    return Trackers(trackers)
