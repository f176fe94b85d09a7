"""Accuracy over sparsity: one line per method, its interval, and every seed as a point."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seven_exp.compare.metrics import bounds, in_percent
from seven_exp.compare.summary import Row
from seven_exp.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers, without yellow, which is too light on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# 7 colours, 8 markers and 3 dashes have no common divisor: together they distinguish 168 methods.
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_DASHES = ("", "7 3", "2 2.5")
_DENSE = "#666666"

_SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "text.parse_math": False,  # a "$" in a name is a "$"
}


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        index: Its index among the methods; names its parts in an SVG.
        colour: In hexadecimal.
        marker: A marker of matplotlib; "" for a reference line.
        dash: Lengths of dash and gap as in SVG; "" for a solid line.
    """

    index: int
    colour: str
    marker: str
    dash: str


def styles(rows: Iterable[Row]) -> dict[str, Style]:
    """Method -> style, by the order of names, so that a method keeps its style in every panel."""
    rows = list(rows)
    pruning = sorted({row.method for row in rows if row.sparsity > 0})
    dense = sorted({row.method for row in rows} - set(pruning))
    found = {method: Style(i, _DENSE, "", "2 4") for i, method in enumerate(dense)}
    for i, method in enumerate(pruning):
        colour, marker, dash = (each[i % len(each)] for each in (_COLOURS, _MARKERS, _DASHES))
        found[method] = Style(len(dense) + i, colour, marker, dash)
    return found


def draw(rows: Sequence[Row], metric: str) -> "Figure":
    """One panel for each model and data set.

    Args:
        rows: At least one.
        metric: Its name, for the axis.

    Returns:
        A figure. Ids of the parts of method i begin with ``method{i}-``, and its point of
        ``rows[j]`` has the id ``method{i}-row{j}``.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    look = styles(rows)
    tasks = list(dict.fromkeys(row.task for row in rows))
    columns = min(2, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    width = (5.2 if columns > 1 else 6.4) * columns + 1.8
    height = max(4.2 * lines, 0.6 + 0.21 * len(look))
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for panel, task in zip(panels, tasks, strict=False):
            _panel(panel, [(i, r) for i, r in enumerate(rows) if r.task == task], look, metric)
            panel.set_title(" on ".join(task), loc="left")
        for empty in panels[len(tasks) :]:
            empty.remove()
        handles = [
            Line2D([], [], color=s.colour, marker=s.marker, ls="-" if s.marker else ":", ms=6)
            for s in look.values()
        ]
        figure.legend(handles, list(look), loc="outside right center", frameon=False)
    return figure


def write_png(path: Path, rows: Sequence[Row], metric: str) -> None:
    """Write the figure at 200 dots per inch."""
    with replacing(path) as partial:
        draw(rows, metric).savefig(partial, dpi=200)


def _panel(
    axes: "Axes", rows: Sequence[tuple[int, Row]], look: dict[str, Style], metric: str
) -> None:
    scale = 100 if in_percent(metric) else 1
    targets = sorted({row.sparsity for _, row in rows if row.sparsity > 0})
    gaps = [_place(b) - _place(a) for a, b in pairwise(targets)]
    present = [method for method in look if any(row.method == method for _, row in rows)]
    pruning = [method for method in present if look[method].marker]
    # Side by side, so that intervals at one sparsity can be distinguished.
    step = min(0.02, 0.6 * min(gaps, default=1) / max(1, len(pruning)))
    for method in present:
        style = look[method]
        own = sorted((r.sparsity, i, r) for i, r in rows if r.method == method)
        if not style.marker:
            for _, i, row in own:
                axes.axhline(
                    scale * row.result.mean,
                    color=style.colour,
                    linestyle=":",
                    gid=f"method{style.index}-row{i}",
                )
            continue
        shift = step * (pruning.index(method) - (len(pruning) - 1) / 2)
        places = [_place(sparsity) + shift for sparsity, _, _ in own]
        means = [scale * row.result.mean for _, _, row in own]
        gid = f"method{style.index}"
        axes.plot(places, means, color=style.colour, lw=1.4, gid=f"{gid}-line{own[0][1]}")
        for x, mean, (_, i, row) in zip(places, means, own, strict=True):
            if (ends := row.result.ends(*bounds(metric))) is not None:
                bar = axes.vlines(x, scale * ends[0], scale * ends[1], color=style.colour, lw=1.2)
                bar.set_gid(f"{gid}-bar{i}")
            seeds = [scale * value for value in row.by_seed.values()]
            (points,) = axes.plot([x] * len(seeds), seeds, style.marker, color=style.colour)
            points.set(alpha=0.3, markersize=3.5, markeredgewidth=0, gid=f"{gid}-seeds{i}")
            (point,) = axes.plot(x, mean, style.marker, color=style.colour, zorder=3)
            point.set(markersize=6.5, markeredgecolor="white", markeredgewidth=0.4, clip_on=False)
            point.set_gid(f"{gid}-row{i}")
    # matplotlib's default margin would show an accuracy above 100%.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, scale * bounds(metric)[0]), min(high, scale * bounds(metric)[1]))
    axes.set_xticks([_place(s) for s in targets], [f"{100 * s:.4g}" for s in targets])
    axes.set_xlabel("sparsity, % (spaced by the logarithm of density)")
    axes.set_ylabel(f"{metric}, %" if scale == 100 else metric)
    axes.grid(alpha=0.25, lw=0.6)


def _place(sparsity: float) -> float:
    """Position of a sparsity on the axis, which spreads high sparsities, where methods differ."""
    return -math.log(1 - sparsity)
