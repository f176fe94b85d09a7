"""Logs a run again, from its folder."""

import json
from pathlib import Path
from typing import Any

from seven_exp.tracking.described import described
from seven_exp.tracking.interface import Tracker


def replay(folder: Path, record: dict[str, Any], tracker: Tracker, lower_is_better: bool) -> None:
    """Log a finished run's config, curves and results.

    Args:
        folder: Its folder.
        record: Its ``results.json``.
        tracker: Called as during the run, without histograms, which are not in the folder.
        lower_is_better: Whether lower values of its headline metric are better.

    Raises:
        OSError, ValueError: ``metrics.jsonl`` can't be read.
    """
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    curves = [json.loads(line) for line in lines]
    tracker.start(described(record, folder, lower_is_better=lower_is_better, id=record["run_hash"]))
    for values in curves:
        step = values.pop("step")
        tracker.log(step, {key: value for key, value in values.items() if value is not None})
    tracker.finish(record)
