"""Accuracy over sparsity: a line a method, its interval, and every seed as a point."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seven_exp.atomic import replacing
from seven_exp.compare.summary import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; markers tell the rest.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", ":", "-.")


def draw(rows: Sequence[Row], metric: str) -> "Figure":
    """One panel for each model and data set."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys((row.model, row.dataset) for row in rows))
    methods = list(dict.fromkeys(r.method for r in sorted(rows, key=lambda r: r.method)))
    pruning = [m for m in methods if any(r.method == m and r.sparsity > 0 for r in rows)]
    height = max(4.4, 1.0 + 0.22 * len(methods))
    figure = Figure(figsize=(5.6 * len(tasks) + 1.6, height), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        chosen = [row for row in rows if (row.model, row.dataset) == task]
        for i, method in enumerate(pruning):
            turn, place = divmod(i, len(_COLOURS))
            style = _COLOURS[place], _MARKERS[place], _LINES[turn % len(_LINES)]
            # Side by side, so that intervals at one sparsity can be told apart.
            shift = (i - (len(pruning) - 1) / 2) * min(0.25, 1.5 / len(pruning))
            _line(axes, [r for r in chosen if r.method == method], metric, style, shift)
        for row in chosen:
            if row.sparsity == 0:
                axes.axhline(
                    _scale(metric) * row.result.mean, color="0.45", linestyle=":", label=row.method
                )
        axes.set_title(" on ".join(task))
        axes.set_xlabel("sparsity: zeros among the prunable weights, %")
        axes.set_ylabel(f"{metric}, %" if _scale(metric) == 100 else metric)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
    return figure


def write_png(path: Path, rows: Sequence[Row], metric: str) -> None:
    """The picture at 160 dots an inch."""
    with replacing(path) as partial:
        draw(rows, metric).savefig(partial, dpi=160)


def _line(
    axes: "Axes", rows: Sequence[Row], metric: str, style: tuple[str, str, str], shift: float
) -> None:
    rows = sorted((row for row in rows if row.sparsity > 0), key=lambda row: row.sparsity)
    if not rows:
        return
    colour, marker, dashes = style
    scale = _scale(metric)
    x = [100 * row.sparsity + shift for row in rows]
    axes.errorbar(
        x,
        [scale * row.result.mean for row in rows],
        [scale * (row.result.half or 0) for row in rows],
        color=colour,
        marker=marker,
        linestyle=dashes,
        markersize=5,
        capsize=3,
        linewidth=1.5,
        label=rows[0].method,
    )
    for place, row in zip(x, rows, strict=True):
        values = [scale * value for value in row.by_seed.values()]
        axes.plot([place] * len(values), values, marker, color=colour, alpha=0.3, markersize=3)


def _scale(metric: str) -> int:
    return 100 if "accuracy" in metric else 1
