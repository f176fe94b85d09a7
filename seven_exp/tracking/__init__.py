"""Trackers: the record on disk, and Weights & Biases, whose failures are contained."""

import os

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
    """The local record first, then W&B unless the config or ``WANDB_MODE`` disables it."""
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
    return Trackers(trackers)
