"""Searches of hyper-parameters: best so far, importance, parallel coordinates and slices."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from seven_exp.compare.axes import wants_logarithm
from seven_exp.compare.look import Look
from seven_exp.compare.metrics import in_percent, print_scale, smaller_is_better
from seven_exp.compare.summary import Row
from seven_exp.compare.table import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 4
"""Number of settings from which a sweep is a search."""

ENOUGH = 10
"""Number of settings from which importances are estimated."""

MOST = 6
"""Number of searches in the figure; those with most settings are shown."""

_USUAL, _BEST = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Search:
    """The settings that were tried for one pruner at one sparsity of a task, in order of time.

    Attributes:
        task: (model, data set).
        pruner: Its name.
        sparsity: Target.
        metric: What is compared.
        validated: Whether the values are of the validation split, on which one may choose.
        values: Mean of the metric over seeds, for each setting that was tried.
        tried: Key -> its value in each of them: numbers, or words if one is no number.
    """

    task: tuple[str, str]
    pruner: str
    sparsity: float
    metric: str
    validated: bool
    values: Sequence[float]
    tried: Mapping[str, Sequence[float] | Sequence[str]]

    @property
    def best(self) -> int:
        """Index of the best setting."""
        return self.values.index(self.best_so_far[-1])

    @property
    def best_so_far(self) -> list[float]:
        """The best value of this and all earlier settings."""
        return list(accumulate(self.values, self._better))

    def _better(self, one: float, other: float) -> float:
        return min(one, other) if smaller_is_better(self.metric) else max(one, other)

    @property
    def importance(self) -> dict[str, float]:
        """Key -> its share in how far a forest's predictions get worse if its values are mixed up.

        Permutation importance (Breiman, Machine Learning 45, 2001) on the settings that were tried,
        most important first; empty for fewer than `ENOUGH`, or if nothing is predictable.
        """
        if len(self.values) < ENOUGH:
            return {}
        columns = [_numbers(values) for values in self.tried.values()]
        worse = _worse(tuple(zip(*columns, strict=True)), tuple(self.values))
        shares = {k: w / sum(worse) for k, w in zip(self.tried, worse, strict=True) if any(worse)}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


@cache  # files and page show the same
def _worse(inputs: tuple[tuple[float, ...], ...], values: tuple[float, ...]) -> list[float]:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    forest = RandomForestRegressor(50, random_state=0).fit(inputs, values)
    found = permutation_importance(forest, inputs, values, random_state=0)
    return [max(0.0, float(mean)) for mean in found.importances_mean]


def searches(rows: Sequence[Row], metric: str) -> list[Search]:
    """The searches among some rows, largest first."""
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.place, row.pruner].append(row)
    found = [_search(group, metric) for group in groups.values() if len(group) >= FEWEST]
    return sorted((s for s in found if s.tried), key=lambda search: -len(search.values))


def _search(rows: Sequence[Row], metric: str) -> Search:
    ordered = sorted(rows, key=lambda row: max(record.written for record in row.records))
    on_validation = [_on_validation(row, metric) for row in ordered]
    values = [value for value in on_validation if value is not None]
    validated = len(values) == len(ordered)
    keys = [key for key in ordered[0].settings if all(key in row.settings for row in ordered)]
    tried = {key: [row.settings[key] for row in ordered] for key in keys}
    return Search(
        *(ordered[0].task, ordered[0].pruner, ordered[0].sparsity, metric, validated),
        values=values if validated else [row.result.mean for row in ordered],
        tried={k: _as_numbers(words) for k, words in tried.items() if len({*words}) > 1},
    )


def _on_validation(row: Row, metric: str) -> float | None:
    """The mean of the metric on the validation split; None if a run has none."""
    found = [(record.values.get("validation") or {}).get(metric) for record in row.records]
    known = [float(value) for value in found if isinstance(value, int | float)]
    return math.fsum(known) / len(known) if len(known) == len(found) else None


def draw(found: Sequence[Search], look: Look | None = None) -> "Figure":
    """For each search best so far, importance, parallel coordinates, and a slice along each key."""
    from matplotlib.figure import Figure

    look, found = look or Look(), found[:MOST]
    width = look.width or 10.5
    columns = 1 if width < 5 else 3
    lines = [_lines(search, look, columns) for search in found]
    height = 0.68 * width / columns
    with look.drawing({"font.size": 8}):
        figure = Figure(figsize=(width, height * sum(map(len, lines))), layout="constrained")
        heights = [len(own) for own in lines]
        parts = figure.subfigures(len(found), 1, squeeze=False, height_ratios=heights).flat
        for part, search, own in zip(parts, found, lines, strict=True):
            name = f"{look.name(search.pruner)} at {percent(search.sparsity)}"
            part.suptitle(f"{name}, {look.task(search.task)}", weight="bold", size="medium")
            grid = part.add_gridspec(len(own), 6)
            for y, line in enumerate(own):
                span = 6 // (len(line) if y < 2 else columns)
                for x, make in enumerate(line):
                    make(part.add_subplot(grid[y, x * span : (x + 1) * span]))
    return figure


def _lines(search: Search, look: Look, columns: int) -> "list[list[Callable[[Axes], None]]]":
    """The panels of each line: history and importance, parallel coordinates, slices."""
    important = [partial(_importance, search=search, look=look)] if search.importance else []
    first: list[Callable[[Axes], None]] = [partial(_history, search=search, look=look), *important]
    second = [partial(_parallel, search=search, look=look)]
    slices = [partial(_slice, search=search, key=key, look=look) for key in search.tried]
    lines = [slices[i : i + columns] for i in range(0, len(slices), columns)]
    above = [first, second] if columns > 1 else [[make] for make in (*first, *second)]
    return [*above, *lines]


def caption(found: Sequence[Search], look: Look) -> str:
    """What the reader of the figure must know."""
    names = ", ".join(look.name(pruner) for pruner in dict.fromkeys(s.pruner for s in found))
    split = "validation" if all(search.validated for search in found) else "test"
    said = [
        f"Settings of {names} that were tried, means over seeds of {look.name(found[0].metric)} on "
        f"the {split} split; orange is the best"
    ]
    if any(search.importance for search in found):
        said.append(
            "Importance: how far a random forest's predictions get worse if a setting's values are "
            "mixed up, as a share of all"
        )
    if len(found) > MOST:
        said.append(f"{len(found) - MOST} smaller searches are left out")
    return ". ".join(said) + "."


def _scaled(search: Search) -> list[float]:
    return [print_scale(search.metric) * value for value in search.values]


def _label(search: Search, look: Look) -> str:
    split = "validation " if search.validated else ""
    return f"{split}{look.name(search.metric)}{', %' if in_percent(search.metric) else ''}"


def _history(axes: "Axes", search: Search, look: Look) -> None:
    order = range(1, len(search.values) + 1)
    axes.plot(order, _scaled(search), "o", ms=3, color=_USUAL, alpha=0.6)
    best = [print_scale(search.metric) * value for value in search.best_so_far]
    axes.step(order, best, where="post", color=_BEST, gid="best-so-far")
    axes.set(title="best so far", xlabel="settings in order of time", ylabel=_label(search, look))


def _importance(axes: "Axes", search: Search, look: Look) -> None:
    names = [look.name(key) for key in search.importance]
    bars = axes.barh(names, [100 * share for share in search.importance.values()], color=_USUAL)
    axes.bar_label(bars, fmt="%.0f%%", padding=2)
    axes.invert_yaxis()
    axes.set(title="importance", xlim=(0, 115), xticks=[])
    axes.spines.bottom.set_visible(False)


def _parallel(axes: "Axes", search: Search, look: Look) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    columns = {**search.tried, _label(search, look): _scaled(search)}
    places = [_unit(values, key) for key, values in columns.items()]
    better = [-v if smaller_is_better(search.metric) else v for v in search.values]
    depths = _from_0_to_1(better)
    order = sorted(range(len(depths)), key=lambda i: (i == search.best, depths[i]))
    lines = [[(x, column[i]) for x, column in enumerate(places)] for i in order]
    colours = [colormaps["Blues"](0.15 + 0.75 * depths[i]) for i in order]
    axes.add_collection(LineCollection(lines, colors=[*colours[:-1], _BEST], lw=1, gid="lines"))
    for x, values in enumerate(columns.values()):
        axes.axvline(x, color="#444444", lw=0.8)
        for y, value in sorted({*zip(places[x], values, strict=True)}):
            if isinstance(value, str) or y in (0, 1):
                text = value if isinstance(value, str) else f"{value:.3g}"
                box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}
                axes.text(x, y, text, ha="center", va="center", size="small", bbox=box)
    names = [look.names.get(key, "\n".join(key.rsplit(".", 1))) for key in columns]
    axes.set_xticks(range(len(columns)), names)
    axes.set(xlim=(-0.4, len(columns) - 0.6), ylim=(-0.08, 1.08), yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _slice(axes: "Axes", search: Search, key: str, look: Look) -> None:
    values, scaled = search.tried[key], _scaled(search)
    axes.plot(values, scaled, "o", ms=3.5, color=_USUAL, alpha=0.6)
    axes.plot(values[search.best], scaled[search.best], "*", ms=9, color=_BEST)
    if _is_numeric(values) and wants_logarithm(_numbers(values), key):
        axes.set_xscale("log")
    axes.set(xlabel=look.name(key), ylabel=_label(search, look))


def _as_numbers(words: Sequence[str]) -> list[float] | list[str]:
    try:
        return [float(word) for word in words]
    except ValueError:
        return list(words)


def _is_numeric(values: Sequence[Any]) -> bool:
    return isinstance(values[0], float)


def _numbers(values: Sequence[float] | Sequence[str]) -> list[float]:
    """Numbers, or the places of words in their order."""
    words: list[Any] = sorted({*values})
    return [v if isinstance(v, float) else float(words.index(v)) for v in values]


def _unit(values: Sequence[float] | Sequence[str], key: str) -> list[float]:
    """Places on an axis from 0 to 1."""
    found = _numbers(values)
    if _is_numeric(values) and wants_logarithm(found, key):
        found = [math.log(value) for value in found]
    return _from_0_to_1(found)


def _from_0_to_1(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / ((high - low) or 1) for value in values]
