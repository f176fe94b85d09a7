"""Locks between processes; where the file system has none, the work goes on without."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

_IMPOSSIBLE = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def held(lock: FileLock, wait: float = -1) -> Iterator[bool]:
    """Whether the lock is this process's while the block lasts; the system frees it of a dead one.

    Args:
        lock: Not held yet.
        wait: Seconds to wait for another process; -1: as long as it takes.

    Raises:
        OSError: The lock's file can't be written.
    """
    mine = acquired(lock, wait)
    try:
        yield mine
    finally:
        lock.release()


def acquired(lock: FileLock, wait: float) -> bool:
    """Whether the lock could be had; `FileLock.release` gives it back.

    Raises:
        OSError: Its file can't be written.
    """
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise
        _warn(Path(lock.lock_file).parent, error.strerror or str(error))
    return True


@cache
def _warn(folder: Path, reason: str) -> None:
    """Once for each folder."""
    log.warning(
        "'%s' has no locks (%s): going on without; start only one process there at a time",
        *(folder, reason),
    )
