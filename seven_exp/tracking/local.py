"""The record on disk: always whole, whatever becomes of other trackers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seven_exp.atomic import replacing
from seven_exp.tracking.interface import RunInfo


class LocalRecord:
    """``metrics.jsonl``, a line a logged step, and ``results.json``, replaced as a whole.

    Errors of the disk are not hidden: a run that can't be recorded has failed.
    """

    def start(self, run: RunInfo) -> None:
        """Begin ``metrics.jsonl`` anew."""
        self.folder = run.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "metrics.jsonl").write_text("")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line and hand it to the system, so that a crash leaves all lines before it."""
        line = json.dumps(plain({"step": step, **values}), allow_nan=False)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write ``results.json``."""
        write_json(self.folder / "results.json", record)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON so that the file is whole or not there; NaN and infinity become null."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """JSON-like containers with every number that JSON can't say replaced by None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
