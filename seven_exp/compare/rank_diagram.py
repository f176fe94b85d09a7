"""The critical-difference diagram: mean ranks on an axis, bars join methods that do not differ."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seven_exp.compare.ranks import Ranks, alike
from seven_exp.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE = 0.24
"""Height of a line of text, in inches."""


def draw(found: Sequence[Ranks]) -> "Figure":
    """One diagram for each sparsity, below each other (Demšar 2006, figure 1)."""
    from matplotlib.figure import Figure

    heights = [_LINE * _lines(ranks) for ranks in found]
    figure = Figure(figsize=(7.5, sum(heights)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights).flat
    for axes, ranks in zip(panels, found, strict=True):
        _diagram(axes, ranks)
    return figure


def write_image(path: Path, found: Sequence[Ranks]) -> None:
    """Write the diagrams; the suffix says the format.

    Raises:
        OSError: It can't be written.
    """
    with replacing(path) as partial:
        draw(found).savefig(partial, dpi=200, metadata=_undated(path.suffix))


def as_svg(found: Sequence[Ranks]) -> str:
    """The diagrams as an SVG element, the same for the same ranks."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": "ranks", "svg.fonttype": "none"}):
        draw(found).savefig(file, format="svg", metadata=_undated(".svg"))
    text = file.getvalue()
    return text[text.index("<svg") :]


def _undated(suffix: str) -> dict[str, None]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})


def _lines(ranks: Ranks) -> float:
    return 5.5 + len(alike(ranks)) / 2 + (len(ranks.ranks) + 1) // 2


def _diagram(axes: "Axes", ranks: Ranks) -> None:
    """Lines of text count downwards from the axis at 0; the better half stands on the left."""
    means, k = ranks.means, len(ranks.ranks)
    groups, half = alike(ranks), (k + 1) // 2
    first = 1.2 + 0.5 * len(groups)
    axes.set(xlim=(0.3, k + 0.7), ylim=(first + half, -4), title="")
    axes.set_axis_off()
    axes.set_title(f"{100 * ranks.sparsity:.4g}% sparsity, {len(ranks.tasks)} tasks", loc="left")
    axes.plot([1, k], [0, 0], color="black", lw=1)
    for tick in range(1, k + 1):
        axes.plot([tick, tick], [0, -0.3], color="black", lw=1)
        axes.text(tick, -0.5, str(tick), ha="center", va="bottom")
    end = min(1 + ranks.critical, k + 0.7)
    axes.plot([1, end], [-2.2, -2.2], color="black", lw=2.5)
    axes.text(1, -2.5, f"critical difference {ranks.critical:.2f}", va="bottom")
    for i, (method, mean) in enumerate(means.items()):
        left = i < half
        line = first + (i if left else k - 1 - i)
        edge = 1 if left else k
        axes.plot([mean, mean, edge], [0, line, line], color="black", lw=0.8)
        axes.text(
            *(edge - 0.05 if left else edge + 0.05, line, f"{method} {mean:.2f}"),
            ha="right" if left else "left", va="center", parse_math=False,
        )  # fmt: skip
    for i, (best, worst) in enumerate(groups):
        line = 0.5 + 0.5 * i
        axes.plot([means[best] - 0.03, means[worst] + 0.03], [line, line], color="black", lw=3)
