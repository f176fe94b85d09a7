"""A cache of parsed files, which reads changed files again and reports broken ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from seven_exp.messages import one_line

T = TypeVar("T")


class FileCache:
    """Caches the parsed content of files as long as their modification times and sizes stay."""

    def __init__(self) -> None:
        self._broken: dict[Path, str] = {}
        self._known: dict[tuple[Path, Callable[[Path], Any]], tuple[tuple[int, int], Any]] = {}

    def read(self, path: Path, parse: Callable[[Path], T]) -> T:
        """``parse(path)``, or its cached result.

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
        """Like `read`, but None for a missing or broken file; `broken_files` lists those."""
        self._broken.pop(path, None)
        try:
            return self.read(path, parse)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self._broken[path] = one_line(reason)
            return None

    def broken_files(self) -> list[str]:
        """One line for each file that `whole` found broken."""
        return [f"{path} ({reason})" for path, reason in sorted(self._broken.items())]
