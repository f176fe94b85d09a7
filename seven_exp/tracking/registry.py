"""Trackers by name, besides the local record and W&B."""

from collections.abc import Callable

from seven_exp.config import Tracker as TrackerConfig
from seven_exp.registry import Registry
from seven_exp.tracking.interface import Tracker

TRACKERS: Registry[Callable[[TrackerConfig], Tracker]] = Registry("tracker")
"""``tracker.also`` names them; each is called with the section ``tracker`` of the config."""
