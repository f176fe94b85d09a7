"""Files read once, and again when they have changed; what is broken costs itself alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class FileCache:
    """Remembers what was made of a file for as long as its time of change and size stay."""

    def __init__(self) -> None:
        self._broken: dict[Path, str] = {}
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

    def whole(self, path: Path, parse: Callable[[Path], T]) -> T | None:
        """As `read`, but None for a file that is missing or broken; `broken_files` names those."""
        self._broken.pop(path, None)
        try:
            return self.read(path, parse)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self._broken[path] = " ".join(str(reason).split())
            return None

    def broken_files(self) -> list[str]:
        """A line for each file that `whole` found broken."""
        return [f"{path} ({reason})" for path, reason in sorted(self._broken.items())]
