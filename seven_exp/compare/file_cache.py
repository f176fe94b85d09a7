"""Files read once, and again when they have changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class FileCache:
    """Remembers what was made of a file for as long as its time of change and size stay."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, Callable[[Path], Any]], tuple[tuple[int, int], Any]] = {}

    def read(self, path: Path, parse: Callable[[Path], T]) -> T:
        """``parse(path)``, or what it came to the last time.

        Raises:
            OSError: The file isn't there.
        """
        status = path.stat()
        stamp = status.st_mtime_ns, status.st_size
        known = self._known.get((path, parse))
        if known is None or known[0] != stamp:
            known = self._known[path, parse] = stamp, parse(path)
        return known[1]
