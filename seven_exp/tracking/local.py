"""The record on disk: always complete, whatever happens to other trackers."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seven_exp.files.atomic import replacing
from seven_exp.tracking.interface import Histogram, RunInfo, Value


class RecordError(OSError):
    """The record can't be written."""


class LocalRecord:
    """``metrics.jsonl``, one line per logged step, and ``results.json``, replaced atomically.

    Errors of the disk are not hidden: a run that can't be recorded has failed.
    """

    def start(self, run: RunInfo) -> None:
        """Start a new ``metrics.jsonl``, or continue after the last step that was kept.

        Raises:
            RecordError: It can't be written.
        """
        self.folder = run.folder
        path = self.folder / "metrics.jsonl"
        lines: list[str] = []
        if run.resumed and path.exists():
            lines = list(_lines_until(run.resumed, path.read_text("utf-8", errors="replace")))
        with writing(path), replacing(path) as partial:
            partial.write_text("".join(lines), "utf-8")

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Append a line and flush it, so that a crash keeps all earlier lines.

        Histograms are not logged here; ``analysis.json`` holds them.

        Raises:
            RecordError: It can't be written.
        """
        figures = {key: v for key, v in values.items() if not isinstance(v, Histogram)}
        line = json.dumps(plain({"step": step, **figures}), allow_nan=False)
        path = self.folder / "metrics.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write ``results.json``.

        Raises:
            RecordError: It can't be written.
        """
        path = self.folder / "results.json"
        with writing(path):
            write_json(path, record)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the system's error into a `RecordError` that names the file."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"can't write {path}: {error.strerror or error}") from error


def _lines_until(step: int, text: str) -> Iterator[str]:
    """The complete lines of steps up to ``step``."""
    for line in text.splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:
            return
        if values["step"] > step or not line.endswith("\n"):
            return
        yield line


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON atomically; NaN and infinity become null."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """JSON-like containers with None for every number that JSON can't represent."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
