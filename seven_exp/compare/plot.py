"""The figures: accuracy over sparsity, and a heat map of the differences to the baseline."""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seven_exp.compare.axes import along, direction, front, place, wants_logarithm, with_results
from seven_exp.compare.axes import axes as titles
from seven_exp.compare.look import COLOURS, Look, ranking
from seven_exp.compare.metrics import bounds, in_percent, print_scale, smaller_is_better
from seven_exp.compare.summary import Row, by_task
from seven_exp.compare.table import percent
from seven_exp.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# 8 markers and 7 colours have no common divisor: with 3 dashes they distinguish 168 methods.
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_DASHES = ("", "7 3", "2 2.5")
_DENSE = 0.6
"""Strength of the dense model's grey, from the background's 0 to the text's 1."""
_OTHERS = 0.22

_SCREEN = 6.8
"""Width of a panel in inches, if no width is given."""

_FILES: dict[Any, Any] = {
    "pdf.fonttype": 42,  # publishers refuse Type 3
    "svg.hashsalt": "seven_exp",  # the same records make the same file
}


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        colour: In hexadecimal.
        marker: A marker of matplotlib; "" for a reference line.
        dash: Lengths of dash and gap as in SVG; "" for a solid line.
    """

    colour: str
    marker: str
    dash: str

    @property
    def line(self) -> Any:
        """The dash as matplotlib's line style."""
        return (0, tuple(map(float, self.dash.split()))) if self.dash else "-"


def styles(rows: Iterable[Row], colours: Sequence[str] = COLOURS) -> dict[str, Style]:
    """Method -> style, by the order of names, so that a method keeps its style in every panel.

    Lines are dashed if there are more methods than colours.
    """
    rows = list(rows)
    pruning = sorted({row.method for row in rows if row.sparsity > 0})
    dense = sorted({row.method for row in rows} - set(pruning))
    found = {method: Style(_grey(_DENSE), "", "2 4") for method in dense}
    for i, method in enumerate(pruning):
        colour, marker = (each[i % len(each)] for each in (colours, _MARKERS))
        dash = _DASHES[i // len(colours) % len(_DASHES)]
        found[method] = Style(colour, marker, dash)
    return found


def draw(
    rows: Sequence[Row], metric: str, baseline: str | None = None, look: Look | None = None
) -> "Figure":
    """Means over sparsity, or as ``look`` says: one panel for each model and data set.

    Each coloured method has a line, intervals, every seed as a point, and its name at the right;
    the others are grey lines, which may leave the panel. With ``look.colour`` all lines are grey
    and the means have the colour of a number. A wide grey line is the Pareto front, see
    `has_front`.

    Args:
        rows: At least one.
        metric: Its name, for the axis.
        baseline: Always coloured.
        look: Names, highlighted methods and width.

    Returns:
        A figure. The artists of a method have the ids ``METHOD-means``, ``-bars`` and ``-seeds``,
        or ``METHOD-line`` if it is dense or grey.
    """
    look = look or Look()
    rows = along(rows, look.x)
    named = titles(record for row in rows for record in row.records)
    chosen = look.coloured(rows, metric, baseline)
    told_apart = [row for row in rows if row.sparsity == 0 or row.method in chosen]
    if look.y is not None:
        rows, metric = with_results(rows, look.y), look.y
    with _panels(rows, look, lambda own, width: 0.62 * width) as (figure, panels):
        style = styles(told_apart, _cycle())
        for panel, own in panels:
            ends = _curves(panel, own, style, metric, look.x)
            if has_front(rows, look, metric):
                _front(panel, own, metric, look.x)
            if look.colour is not None:
                _tint(panel, own, metric, look, look.axis(look.colour, named))
            # In a paper a figure's caption names a single task.
            if look.width is None or len(panels) > 1:
                panel.set_title(_title(panel, own, look), loc="left", weight="bold")
            spaced = f"{look.name(look.x)}, % (spaced by log density)"
            panel.set_xlabel(spaced if look.x == "sparsity" else look.axis(look.x, named))
            panel.set_ylabel(look.axis(metric, named))
            if look.colour is None:
                _name(panel, [(y, look.name(name), style[name], x) for name, x, y in ends])
    return figure


def has_front(rows: Sequence[Row], look: Look, y: str) -> bool:
    """Whether `draw` shows a Pareto front: along sparsity it would only be the best means."""
    records = [record for row in rows for record in row.records]
    return "sparsity" not in (look.x, y) and direction(look.x, records) * direction(y, records) != 0


def draw_differences(
    rows: Sequence[Row], metric: str, baseline: str, look: Look | None = None
) -> "Figure":
    """A heat map for each model and data set: methods by rank, sparsities, differences.

    The baseline's own cells hold its means.

    Args:
        rows: At least one with a difference.
        metric: Their metric.
        baseline: What the differences are to.
        look: Names, highlighted methods (their names are bold) and width.
    """
    look = look or Look()
    rows = [row for row in rows if row.sparsity > 0]

    def height(own: Sequence[Row], width: float) -> float:
        names = {row.method for row in own}
        line = max(1 + _label(name, look).count("\n") for name in names)
        return (0.21 * line * len(names) + 1.1) * look.size / 10

    with _panels(rows, look, height) as (figure, panels):
        for panel, own in panels:
            _heat(panel, own, metric, baseline, look)
            if look.width is None or len(panels) > 1:
                panel.set_title(_title(panel, own, look))
        title = f"{look.name(metric)} minus {look.name(baseline)}"
        title += ", points" if in_percent(metric) else ""
        title = textwrap.fill(title, int(14 * figure.get_figwidth()))
        figure.suptitle(title, size="medium", weight="bold")
    return figure


def write_figure(path: Path, figure: "Figure", look: Look | None = None) -> None:
    """Write a figure in the format of the path's suffix, without the date."""
    date = {".pdf": "CreationDate", ".svg": "Date"}.get(path.suffix)
    # Fonts are found when a figure is written.
    with replacing(path) as partial, (look or Look()).drawing(_FILES):
        figure.savefig(partial, dpi=200, metadata={date: None} if date else None)


def as_svg(figure: "Figure") -> str:
    """The figure as an SVG element, the same for the same figure."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({**_FILES, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _label(method: str, look: Look) -> str:
    """A method's name beside the heat map."""
    return _cut(textwrap.wrap(look.name(method), 30), 2)


def _title(panel: "Axes", rows: Sequence[Row], look: Look) -> str:
    """The panel's task, in lines of its width."""
    inches = panel.get_window_extent().width / panel.figure.dpi
    return textwrap.fill(look.task(rows[0].task), max(16, int(11 * inches)))


def _cycle() -> list[str]:
    """The colours of the style sheet that is drawn with."""
    from matplotlib import rcParams
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in rcParams["axes.prop_cycle"].by_key()["color"]]


def _grey(strength: float) -> str:
    """Between the background and the text of the style sheet that is drawn with."""
    from matplotlib import rcParams
    from matplotlib.colors import to_hex, to_rgb

    paper, ink = (to_rgb(rcParams[key]) for key in ("axes.facecolor", "text.color"))
    red, green, blue = (a + strength * (b - a) for a, b in zip(paper, ink, strict=True))
    return to_hex((red, green, blue)).upper()


@contextmanager
def _panels(
    rows: Sequence[Row], look: Look, height: Callable[[Sequence[Row], float], float]
) -> Iterator[tuple["Figure", list[tuple["Axes", list[Row]]]]]:
    """A figure with a panel for each task, and the task's rows, in the font size of its width."""
    from matplotlib.figure import Figure

    tasks = [own for _, own in by_task(rows)]
    columns = 1 if look.width and look.width < 5 else min(2, len(tasks))
    width = look.width or _SCREEN * columns
    lines = [tasks[i : i + columns] for i in range(0, len(tasks), columns)]
    heights = [max(height(own, width / columns) for own in line) for line in lines]
    with look.drawing({"axes.titlesize": "medium", "font.size": look.size}):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        shape: dict[str, Any] = {"height_ratios": heights, "squeeze": False}
        for empty in list(figure.subplots(len(lines), columns, **shape).flat)[len(tasks) :]:
            empty.remove()
        yield figure, list(zip(figure.axes, tasks, strict=True))


def _curves(
    axes: "Axes", rows: Sequence[Row], look: dict[str, Style], metric: str, x: str
) -> list[tuple[str, float, float]]:
    """Draw one panel; return the coloured methods with their last points."""
    scale = print_scale(metric)
    at = {id(row): value for row in rows if (value := _place(row, x)) is not None}
    of: dict[str, list[Row]] = {row.method: [] for row in rows if id(row) in at}
    for row in sorted((row for row in rows if id(row) in at), key=lambda row: at[id(row)]):
        of[row.method].append(row)
    pruning = [method for method in look if method in of and look[method].marker]
    targets = {row.sparsity: at[id(row)] for method in pruning for row in of[method]}
    gaps = [b - a for a, b in pairwise(sorted(targets.values()))]
    # Side by side, so that intervals at one sparsity can be distinguished.
    beside = 0.009 * sum(gaps) if gaps else 0.02
    step = min(beside, 0.6 * min(gaps, default=1) / max(1, len(pruning))) if x == "sparsity" else 0
    if x != "sparsity":
        _ticks(axes, "x", list(at.values()), x)
    _ticks(axes, "y", [scale * row.result.mean for row in rows], metric)
    ends = []
    for method in (method for method in look if method in of):
        means, colour = [scale * row.result.mean for row in of[method]], look[method].colour
        if method not in pruning:
            axes.axhline(means[0], color=colour, ls=look[method].line, lw=1, gid=f"{method}-line")
            ends.append((method, max(targets.values(), default=0.0), means[0]))
            continue
        shift = step * (pruning.index(method) - (len(pruning) - 1) / 2)
        places = [at[id(row)] + shift for row in of[method]]
        _method(axes, places, of[method], look[method], metric)
        ends.append((method, places[-1], means[-1]))
    # matplotlib's default margin would show an accuracy above 100%. Grey lines are drawn later, as
    # methods far below would leave no room for the others.
    low, high = axes.get_ylim()
    if ends:
        axes.set_ylim(max(low, scale * bounds(metric)[0]), min(high, scale * bounds(metric)[1]))
    for method in of.keys() - look.keys():
        places, means = [at[id(r)] for r in of[method]], [scale * r.result.mean for r in of[method]]
        faint: dict[str, Any] = {"color": _grey(_OTHERS), "ms": 1.6, "lw": 0.8, "zorder": 1}
        axes.plot(places, means, "o-", **faint, gid=f"{method}-line")
    if x == "sparsity":
        ticks = sorted(targets)
        axes.set_xticks([targets[s] for s in ticks], [f"{100 * s:.4g}" for s in ticks])
    axes.grid(alpha=0.25, lw=0.6)
    return ends


def _front(axes: "Axes", rows: Sequence[Row], metric: str, x: str) -> None:
    records = [record for row in rows for record in row.records]
    scale = print_scale(metric)
    points = [
        (at, scale * row.result.mean)
        for row in rows
        if not row.barred and (at := _place(row, x)) is not None
    ]
    found = front(points, direction(x, records), direction(metric, records))
    xs, ys = [x for x, _ in found], [y for _, y in found]
    axes.plot(xs, ys, color=_grey(_DENSE), lw=5, alpha=0.25, zorder=0, gid="front")


def _tint(axes: "Axes", rows: Sequence[Row], metric: str, look: Look, title: str) -> None:
    """Give the means the colour of a number, and everything else a grey one."""
    from matplotlib.colors import LogNorm, Normalize

    for artist in (*axes.lines, *axes.collections):
        artist.set(color=_grey(_OTHERS))
    scale = print_scale(metric)
    assert look.colour is not None
    tints = print_scale(look.colour)
    points = [
        (x, scale * row.result.mean, tints * value)
        for row in rows
        if (x := _place(row, look.x)) is not None and (value := place(row, look.colour)) is not None
    ]
    if points:
        xs, ys, values = zip(*points, strict=True)
        norm = LogNorm() if wants_logarithm(values, look.colour) else Normalize()
        kind: dict[str, Any] = {"cmap": "viridis", "norm": norm, "s": 22, "zorder": 4}
        made = axes.scatter(xs, ys, c=values, clip_on=False, **kind, gid="colours")
        axes.figure.colorbar(made, ax=axes, label=title)


def _ticks(axes: "Axes", side: Literal["x", "y"], values: Sequence[float], name: str) -> None:
    """A logarithmic axis where values need one, and short numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    logarithmic = wants_logarithm(values, name)
    if logarithmic:
        axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 3)) if logarithmic else MaxNLocator(6))
    axis.set_major_formatter(lambda value, _: _short(value))
    axis.set_minor_formatter(NullFormatter())


def _method(
    axes: "Axes", places: Sequence[float], rows: Sequence[Row], style: Style, metric: str
) -> None:
    scale = print_scale(metric)
    name = rows[0].method
    kind: dict[str, Any] = {"color": style.colour, "marker": style.marker}
    points: dict[str, Any] = {"ms": 4.5, "mec": _grey(0), "mew": 0.4, "zorder": 3, "clip_on": False}
    means = [scale * row.result.mean for row in rows]
    axes.plot(places, means, ls=style.line, lw=1.2, **kind, **points, gid=f"{name}-means")
    ends = zip(places, (row.result.ends(*bounds(metric)) for row in rows), strict=True)
    if bars := [(x, scale * end[0], scale * end[1]) for x, end in ends if end is not None]:
        axes.vlines(*zip(*bars, strict=True), color=style.colour, lw=1, gid=f"{name}-bars")
    seeds = [(x, scale * v) for x, r in zip(places, rows, strict=True) for v in r.by_seed.values()]
    faint: dict[str, Any] = {"ls": "", "alpha": 0.3, "ms": 2.5, "mew": 0}
    axes.plot(*zip(*seeds, strict=True), **kind, **faint, gid=f"{name}-seeds")


def _name(axes: "Axes", ends: Sequence[tuple[float, str, Style, float]]) -> None:
    """Names at the right of the panel, as near to the last points as their height allows."""
    from scipy.optimize import isotonic_regression

    ordered = sorted(ends, key=lambda end: end[:2])
    # The height of a line of text as a part of the panel's.
    line = (
        float(axes.xaxis.label.get_fontsize())
        / 72
        * axes.figure.dpi
        / axes.get_window_extent().height
    )
    most = max(1, int(1 / (1.25 * line * max(1, len(ordered)))))
    texts = [_cut(textwrap.wrap(name, 24), most) for _, name, _, _ in ordered]
    sizes = [1.25 * line * (1 + text.count("\n")) for text in texts]
    offsets = [sum(sizes[:i]) + sizes[i] / 2 for i in range(len(sizes))]
    place = (axes.transData + axes.transAxes.inverted()).transform
    wanted = [float(place((x, y))[1]) for y, _, _, x in ordered]
    # The least squares solution for labels in order and apart.
    spread = isotonic_regression([w - o for w, o in zip(wanted, offsets, strict=True)]).x
    # Clipped, it is the solution inside the panel: above it stands the title.
    spread = spread.clip(0, max(0, 1 - sum(sizes)))
    for (y, _, style, x), text, base, offset in zip(ordered, texts, spread, offsets, strict=True):
        arrow = {"arrowstyle": "-", "lw": 0.5, "color": style.colour, "relpos": (0, 0.5)}
        axes.annotate(
            text,
            (x, y),
            xytext=(1.06, base + offset),
            textcoords="axes fraction",
            color=style.colour,
            va="center",
            arrowprops={**arrow, "shrinkA": 1, "shrinkB": 4},
            annotation_clip=False,
        )


def _cut(lines: Sequence[str], most: int) -> str:
    """At most so many lines: an ellipsis for those before the last, where settings differ."""
    if len(lines) <= most:
        return "\n".join(lines)
    return f"{lines[0]}..." if most == 1 else "\n".join([*lines[: most - 1], f"...{lines[-1]}"])


def _heat(axes: "Axes", rows: Sequence[Row], metric: str, baseline: str, look: Look) -> None:
    scale, digits = (100, 1) if in_percent(metric) else (1, 3)
    methods, targets = ranking(rows, metric), sorted({row.sparsity for row in rows})
    known = sorted(abs(row.difference.estimate.mean) for row in rows if row.difference)
    # A few very large differences would leave all others white.
    most = (known[int(0.9 * (len(known) - 1))] if known else 0) or 1
    depths = [[math.nan] * len(targets) for _ in methods]
    for row in rows:
        x, y = targets.index(row.sparsity), methods.index(row.method)
        if row.difference is not None:
            mean = row.difference.estimate.mean
            depths[y][x] = max(-1, min(1, mean / most))
            # The sum makes "+0.0" of a rounded "-0.0".
            words = f"{round(scale * mean, digits) + 0.0:+.{digits}f}{'*' if row.starred else ''}"
        elif baseline in (row.method, row.pruner):
            words = f"{scale * row.result.mean:.{digits}f}"
        else:
            continue
        ink = "white" if abs(depths[y][x]) > 0.65 else "black"
        text = axes.text(x, y, words, ha="center", va="center", color=ink, size="small")
        text.set_in_layout(False)
    colours = "RdBu_r" if smaller_is_better(metric) else "RdBu"
    edges = [[i - 0.5 for i in range(len(side) + 1)] for side in (targets, methods)]
    mesh = axes.pcolormesh(*edges, depths, vmin=-1, vmax=1, cmap=colours, edgecolors="white")
    mesh.set_gid("differences")
    axes.set_facecolor("#E8E8E8")
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xticks(range(len(targets)), list(map(percent, targets)))
    axes.set_yticks(range(len(methods)), [_label(m, look) for m in methods])
    bold = {row.method for row in rows if look.highlights(row)}
    for label, method in zip(axes.get_yticklabels(), methods, strict=True):
        label.set_fontweight("bold" if method in bold else "normal")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("sparsity")


def _short(value: float) -> str:
    """A tick's label: 0.001, 3000, 30k, 1M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"


def _place(row: Row, x: str) -> float | None:
    """Position on the axis; that of sparsities spreads the high ones, where methods differ."""
    if x == "sparsity":
        return -math.log(1 - row.sparsity)
    value = place(row, x)
    return None if value is None else print_scale(x) * value
