"""Locks between processes; on a file system without locks, work continues without them."""

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
    """Whether this process holds the lock within the context; the system frees it if it dies.

    Args:
        lock: Not held yet.
        wait: Seconds to wait for another process; -1: without limit.

    Raises:
        OSError: The lock's file can't be written.
    """
    mine = acquired(lock, wait)
    try:
        yield mine
    finally:
        lock.release()


def acquired(lock: FileLock, wait: float) -> bool:
    """Try to acquire the lock; `FileLock.release` releases it.

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
    """Warn once per folder."""
    log.warning(
        "'%s' has no locks (%s): continuing without; start only one process there at a time",
        *(folder, reason),
    )
