"""What a run's probe has measured, read from ``analysis.json`` and boiled down for the page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOKS = ("choice", "start", "now")
"""Ways of looking at a ratio; `seven_exp.analysis.Probe` says which."""

MEASURES = ("snr", "direction")


@dataclass(frozen=True)
class Contrast:
    """A ratio among kept weights and among pruned ones.

    Attributes:
        kept: Its mean; None without a weight.
        pruned: Likewise.
        separation: Chance that a kept weight's lies above a pruned one's; 0.5 says nothing.
        in_layers: The same among pairs of one layer.
        counts: Two histograms, of kept weights and of pruned ones.
    """

    kept: float | None
    pruned: float | None
    separation: float | None
    in_layers: float | None
    counts: tuple[list[int], list[int]]


@dataclass(frozen=True)
class Evidence:
    """Of one run.

    Attributes:
        contrasts: (look, measure) -> contrast at the last measurement; for ``choice`` of all
            measurements together, each of a weight by the number of weights pruned since the one
            before.
        edges: Measure -> ends of the histograms' bins.
        collapsed: Layers that kept less than a hundredth of their weights.
        empty_rows: Fraction of all rows without a weight.
    """

    contrasts: Mapping[tuple[str, str], Contrast]
    edges: Mapping[str, Sequence[float]]
    collapsed: Sequence[str]
    empty_rows: float


def read_evidence(path: Path) -> Evidence:
    """Read an ``analysis.json``.

    Raises:
        OSError: The file can't be read.
        ValueError: It is broken or something else.
    """
    try:
        values = json.loads(path.read_bytes())
        measurements = values["measurements"]
        last = measurements[-1]
        contrasts = {}
        for measure in MEASURES:
            for look in LOOKS:
                taken = [m[look][measure] for m in measurements if look in m]
                if taken:
                    of = pooled(taken) if look == "choice" else _contrast(taken[-1])
                    contrasts[look, measure] = of
        return Evidence(
            contrasts=contrasts,
            edges={measure: values["edges"][measure] for measure in MEASURES},
            collapsed=[str(name) for name in last["collapsed"]],
            empty_rows=sum(last["empty_rows"])
            / sum(layer["shape"][0] for layer in values["layers"]),
        )
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no analysis: {error!r}") from error


def pooled(found: Sequence[Mapping[str, Any]]) -> Contrast:
    """Several measurements as one: a mean of them, each weighing as many weights as were pruned.

    So each pruned weight is compared with those that were kept at its own time.
    """
    weights = [sum(one["pruned"]["counts"]) for one in found]

    def mean(values: Iterable[float | None]) -> float | None:
        pairs = [(w, v) for w, v in zip(weights, values, strict=True) if v is not None and w]
        total = sum(w for w, _ in pairs)
        return sum(w * v for w, v in pairs) / total if total else None

    return Contrast(
        kept=mean(one["kept"]["mean"] for one in found),
        pruned=mean(one["pruned"]["mean"] for one in found),
        separation=mean(one["separation"] for one in found),
        in_layers=mean(one["separation_in_layers"] for one in found),
        counts=(
            summed([one["kept"]["counts"] for one in found]),
            summed([one["pruned"]["counts"] for one in found]),
        ),
    )


def summed(histograms: Sequence[Sequence[int]]) -> list[int]:
    """Histograms of the same bins as one."""
    return [sum(column) for column in zip(*histograms, strict=True)]


def _contrast(one: Mapping[str, Any]) -> Contrast:
    return Contrast(
        *(one["kept"]["mean"], one["pruned"]["mean"], one["separation"]),
        one["separation_in_layers"],
        (list(one["kept"]["counts"]), list(one["pruned"]["counts"])),
    )
