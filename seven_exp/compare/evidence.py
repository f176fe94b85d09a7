"""Reads a probe's measurements from ``analysis.json`` and summarises them for the page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOKS = ("choice", "start", "now")
"""The ways to compare a ratio; see `seven_exp.analysis.Probe`."""

MEASURES = ("snr", "direction")


@dataclass(frozen=True)
class Contrast:
    """A ratio among kept and among pruned weights.

    Attributes:
        kept: Mean over kept weights; None if there are none.
        pruned: Mean over pruned weights; None if there are none.
        separation: Probability that a kept weight's ratio exceeds a pruned one's; 0.5 means no
            difference.
        in_layers: The same among pairs within a layer.
        counts: Two histograms, of kept and of pruned weights.
    """

    kept: float | None
    pruned: float | None
    separation: float | None
    in_layers: float | None
    counts: tuple[list[int], list[int]]


@dataclass(frozen=True)
class Evidence:
    """The measurements of one run.

    Attributes:
        contrasts: (comparison, measure) -> contrast at the last measurement. For ``choice``: over
            all measurements, each weighted by the number of weights pruned since the previous one.
        edges: Measure -> edges of the histograms' bins.
        collapsed: Layers that kept less than 1% of their weights.
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
        ValueError: It is broken or not an analysis.
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
        raise ValueError(f"{path} is not an analysis: {error!r}") from error


def pooled(found: Sequence[Mapping[str, Any]]) -> Contrast:
    """Combine measurements: their mean, weighted by the numbers of pruned weights.

    So each pruned weight is compared with the weights that were kept at its own time.
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
    """The sum of histograms with the same bins."""
    return [sum(column) for column in zip(*histograms, strict=True)]


def _contrast(one: Mapping[str, Any]) -> Contrast:
    return Contrast(
        *(one["kept"]["mean"], one["pruned"]["mean"], one["separation"]),
        one["separation_in_layers"],
        (list(one["kept"]["counts"]), list(one["pruned"]["counts"])),
    )
