"""Signals that ask a run to stop: it finishes its step and saves its state first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
"""Terminate, Ctrl-C, and the two by which Slurm announces a time limit or a pre-emption."""

EXIT_CODE = 75
"""Not finished, but without error: the same command continues. (sysexits.h: EX_TEMPFAIL.)"""


class InterruptedRun(SystemExit):
    """A run was asked to stop, or another process executes it; nothing is lost."""

    def __init__(self, reason: str) -> None:
        super().__init__(EXIT_CODE)
        self.reason = reason

    def __reduce__(self) -> tuple[type["InterruptedRun"], tuple[str]]:
        return type(self), (self.reason,)

    def __str__(self) -> str:
        return self.reason


class Interruption:
    """The signal that has arrived, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def obey_if_asked(self) -> None:
        """Handle the signal if one has arrived; raises as `obey`."""
        if self.signal is not None:
            self.obey()

    def obey(self) -> None:
        """Handle the signal that was postponed to the end of the step.

        Its previous handler gets it: Python's own for Ctrl-C, or that of a launcher, which requeues
        the job. Without a previous handler, the process ends with `EXIT_CODE`.

        Raises:
            InterruptedRun: There was no handler, or another process of the run got the signal.
            BaseException: Whatever the previous handler raises.
        """
        number, self.signal = self.signal, None
        if number is None:
            raise InterruptedRun("another process was asked to stop")
        former = self._before[number]
        if former == signal.SIG_DFL:
            raise InterruptedRun(f"stopped by {number.name}")
        former(number, None)


@contextmanager
def postponed() -> Iterator[Interruption]:
    """Only record a signal within the context; a second one acts immediately.

    Outside the main thread, where Python handles no signals, nothing changes.
    """
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.signal = signal.Signals(number)
        signal.signal(number, asked._before[number])

    for number in SIGNALS:
        former = signal.getsignal(number)
        if former not in (signal.SIG_IGN, None):
            asked._before[number] = former
            signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, former in asked._before.items():
            signal.signal(number, former)
