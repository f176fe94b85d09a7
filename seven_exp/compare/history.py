"""Reads the training curves from ``metrics.jsonl`` and thins them for plotting."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from seven_exp.compare.records import finite

T = TypeVar("T")

History = dict[str, list[tuple[int, float | None]]]
"""Quantity -> (step, value) in the order of logging; None stands for NaN and infinity."""

_OF_LAYERS = "layer_sparsity/"

MOST_POINTS = 200
"""Points of each curve to keep: more than a screen shows, and few enough for many runs."""


def read_history(path: Path) -> History:
    """Read all curves of a run except those of single layers, each thinned to `MOST_POINTS`.

    The last line may be incomplete and is then skipped.

    Raises:
        OSError: The file can't be read.
        ValueError: Another line is not a JSON object with a step.
    """
    found: History = defaultdict(list)
    broken = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if broken:
                raise ValueError(f"line {broken} is broken")
            try:
                values = json.loads(line)
                step = int(values["step"])
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                broken = number
                continue
            for name, value in values.items():
                if name == "step" or name.startswith(_OF_LAYERS):
                    continue
                if value is None or type(value) in (int, float):
                    found[name].append((step, finite(value)))
    return {name: thinned(curve, MOST_POINTS) for name, curve in found.items()}


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most this many items, evenly spaced, including the first and the last.

    Args:
        items: In order.
        most: At least 2.
    """
    n = len(items)
    if n <= most:
        return list(items)
    return [items[round(k * (n - 1) / (most - 1))] for k in range(most)]
