"""A tracker whose failures never stop a run."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from seven_exp.messages import one_line
from seven_exp.tracking.interface import RunInfo, Tracker, Value

log = logging.getLogger(__name__)


class Guarded:
    """Forwards everything until the tracker fails once; then warns in one line and stops."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.works = True

    def start(self, run: RunInfo) -> None:
        """Forward."""
        self._try(lambda: self.tracker.start(run))

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Forward."""
        self._try(lambda: self.tracker.log(step, values))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Forward."""
        self._try(lambda: self.tracker.finish(record))

    def _try(self, call: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            call()
        except Exception as error:
            self.works = False
            reason = one_line(error)
            log.warning(
                "%s failed (%s): the run continues, its record on disk is complete",
                type(self.tracker).__name__,
                reason,
            )
