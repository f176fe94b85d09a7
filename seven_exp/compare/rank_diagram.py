"""The critical-difference diagram: mean ranks on an axis, bars join methods that do not differ."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seven_exp.compare.look import Look
from seven_exp.compare.ranks import Ranks, alike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE = 0.24
"""Height of a line of text in inches, at 10 points."""


def draw(found: Sequence[Ranks], look: Look | None = None) -> "Figure":
    """One diagram for each sparsity, below each other (Demšar 2006, figure 1)."""
    from matplotlib.figure import Figure

    look = look or Look()
    heights = [_LINE * look.size / 10 * _lines(ranks) for ranks in found]
    with look.drawing({"font.size": look.size}):
        figure = Figure(figsize=(look.width or 7.5, sum(heights)), layout="constrained")
        panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights).flat
        for axes, ranks in zip(panels, found, strict=True):
            _diagram(axes, ranks, look)
    return figure


def _lines(ranks: Ranks) -> float:
    return 5.5 + len(alike(ranks)) / 2 + (len(ranks.ranks) + 1) // 2


def _diagram(axes: "Axes", ranks: Ranks, look: Look) -> None:
    """Lines of text count downwards from the axis at 0; the better half stands on the left."""
    from matplotlib import rcParams

    ink = rcParams["axes.edgecolor"]
    means, k = ranks.means, len(ranks.ranks)
    groups, half = alike(ranks), (k + 1) // 2
    first = 1.2 + 0.5 * len(groups)
    axes.set(xlim=(0.3, k + 0.7), ylim=(first + half, -4), title="")
    axes.set_axis_off()
    axes.set_title(f"{100 * ranks.sparsity:.4g}% sparsity, {len(ranks.tasks)} tasks", loc="left")
    axes.plot([1, k], [0, 0], color=ink, lw=1)
    for tick in range(1, k + 1):
        axes.plot([tick, tick], [0, -0.3], color=ink, lw=1)
        axes.text(tick, -0.5, str(tick), ha="center", va="bottom")
    end = min(1 + ranks.critical, k + 0.7)
    axes.plot([1, end], [-2.2, -2.2], color=ink, lw=2.5)
    axes.text(1, -2.5, f"critical difference {ranks.critical:.2f}", va="bottom")
    for i, (method, mean) in enumerate(means.items()):
        left = i < half
        line = first + (i if left else k - 1 - i)
        edge = 1 if left else k
        axes.plot([mean, mean, edge], [0, line, line], color=ink, lw=0.8)
        axes.text(
            *(edge - 0.05 if left else edge + 0.05, line, f"{look.name(method)} {mean:.2f}"),
            ha="right" if left else "left", va="center",
        )  # fmt: skip
    for i, (best, worst) in enumerate(groups):
        line = 0.5 + 0.5 * i
        axes.plot([means[best] - 0.03, means[worst] + 0.03], [line, line], color=ink, lw=3)
