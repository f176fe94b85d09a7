"""Which part does the work: main effects and interactions of settings that were crossed."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from seven_exp.compare.look import Look
from seven_exp.compare.metrics import in_percent, print_scale
from seven_exp.compare.statistics import Estimate, estimate
from seven_exp.compare.summary import Row, largest_step
from seven_exp.compare.table import percent
from seven_exp.messages import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Main effects (mean over all combinations with a level minus mean over all, with 95% intervals "
    "over seeds) and the share of each setting and pair in the variance between combinations."
)

_SMALL = 0.005
"""Share of the variance below which a term has no sentence."""

Term = tuple[str, ...]
"""One factor for its main effect, two for their interaction."""


@dataclass(frozen=True)
class Factorial:
    """A crossed design on one task at one sparsity, by the effects of its factors.

    The effect of a level is the mean over all cells with this level, minus the mean over all cells;
    that of two levels is what remains of their cells' mean without both main effects. Each is taken
    seed by seed, so the interval is that of paired differences. Effects of a term sum to 0.

    Attributes:
        task: (model, data set).
        sparsity: Target.
        seeds: Seeds with a result in every cell; the others are left out.
        left_out: Number of the others.
        effects: Term -> levels, one for each factor of the term -> effect.
        shares: Term -> its share of the variance of the cells' means over seeds. The rest is that
            of interactions of more factors, and noise.
    """

    task: tuple[str, str]
    sparsity: float
    seeds: Sequence[int]
    left_out: int
    effects: Mapping[Term, Mapping[tuple[str, ...], Estimate]]
    shares: Mapping[Term, float]

    def lines(self, metric: str) -> list[dict[str, Any]]:
        """One for each effect, as for a CSV file."""
        model, dataset = self.task
        return [
            {
                **{"model": model, "dataset": dataset, "sparsity": self.sparsity},
                **{"metric": metric, "term": " x ".join(term), "level": " x ".join(levels)},
                **{"effect": effect.mean, "half": effect.half, "seeds": effect.n},
                "share_of_variance": self.shares[term],
            }
            for term, own in self.effects.items()
            for levels, effect in own.items()
        ]


def factorials(rows: Sequence[Row], factors: Sequence[str]) -> list[Factorial]:
    """One for each task and sparsity.

    Args:
        rows: With results.
        factors: "pruner", or settings that differ between the rows, at least 2.

    Raises:
        ValueError: A factor is unknown or has one level, another setting differs too, or the
            design is not complete.
    """
    known = ["pruner", *sorted({key for row in rows for key in row.settings})]
    for factor in factors:
        if factor not in known:
            raise ValueError(f"--effects: no setting '{factor}' differs: {nearest(factor, known)}")
    if len(set(factors)) < 2:
        raise ValueError("--effects: name at least two settings, separated by commas")
    groups: dict[tuple[tuple[str, str], float], list[Row]] = defaultdict(list)
    for row in rows:
        if any(factor in row.settings for factor in factors if factor != "pruner"):
            groups[row.task, row.sparsity].append(row)
    return [_factorial(group, factors) for _, group in sorted(groups.items())]


def _factorial(rows: Sequence[Row], factors: Sequence[str]) -> Factorial:
    cells = _cells(rows, factors)
    levels = [list(dict.fromkeys(cell[i] for cell in cells)) for i in range(len(factors))]
    for factor, own in zip(factors, levels, strict=True):
        if len(own) < 2:
            raise ValueError(f"--effects: {factor} is {own[0]} everywhere: leave it out")
    for cell in product(*levels):
        if cell not in cells:
            missing = " ".join(f"{f}={v}" for f, v in zip(factors, cell, strict=True))
            raise ValueError(f"--effects: not every combination has a result: {missing} has none")
    every = {seed for row in rows for seed in row.by_seed}
    seeds = sorted(every.intersection(*(row.by_seed for row in rows)))
    if not seeds:
        raise ValueError("--effects: no seed has a result for every combination")
    table = np.array(
        [[cells[cell].by_seed[seed] for cell in product(*levels)] for seed in seeds]
    ).reshape(len(seeds), *map(len, levels))
    effects: dict[Term, dict[tuple[str, ...], Estimate]] = {}
    shares: dict[Term, float] = {}
    means = table.mean(0)
    step = largest_step(rows)
    total = np.square(means - means.mean()).mean()
    for axes, found in _terms(table):
        term = tuple(factors[axis] for axis in axes)
        chosen = product(*(levels[axis] for axis in axes))
        by_level = found.reshape(len(seeds), -1).T.tolist()
        # A level's mean over its runs changes in steps of one example in one of them.
        floor = step * found[0].size / table[0].size
        estimates = (estimate(values, floor) for values in by_level)
        effects[term] = dict(zip(chosen, estimates, strict=True))
        shares[term] = float(np.square(found.mean(0)).mean() / total) if total > 0 else 0.0
    first = rows[0]
    left_out = len(every) - len(seeds)
    return Factorial(first.task, first.sparsity, seeds, left_out, effects, shares)


def _cells(rows: Sequence[Row], factors: Sequence[str]) -> dict[tuple[str, ...], Row]:
    """Levels -> the row that has them."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        values = {"pruner": row.pruner, **row.settings}
        cell = tuple(values.get(factor, "") for factor in factors)
        if cell in found:
            others = {k for k in values if values[k] != found[cell].settings.get(k)} - {"pruner"}
            also = ", ".join(sorted(others)) or "something"
            raise ValueError(f"--effects: {also} differs too: name it, or compare fewer folders")
        found[cell] = row
    return found


def _terms(table: "np.ndarray[Any, Any]") -> Iterator[tuple[tuple[int, ...], Any]]:
    """Axes of each term -> its effects; the other axes stay, with length 1.

    Args:
        table: (seeds, levels of the first factor, levels of the second, ...).
    """
    count = table.ndim - 1

    def mean(*kept: int) -> Any:
        """Over the axes that are not kept, which stay with length 1."""
        rest = tuple(1 + axis for axis in range(count) if axis not in kept)
        return table.mean(axis=rest, keepdims=True) if rest else table

    for axis in range(count):
        yield (axis,), mean(axis) - mean()
    for one, other in combinations(range(count), 2):
        yield (one, other), mean(one, other) - mean(one) - mean(other) + mean()


def draw(found: Sequence[Factorial], metric: str, look: Look | None = None) -> "Figure":
    """For each factorial the main effects with intervals, and the shares of all terms."""
    from matplotlib.figure import Figure

    look = look or Look()
    width = look.width or 8.5
    sizes = [(len(_mains(one)), len(one.shares)) for one in found]
    # Side by side where there is room for the names of both.
    columns = 2 if width >= 6 else 1
    lines = [max(size) for size in sizes] if columns == 2 else [n for size in sizes for n in size]
    heights = [0.9 + 0.2 * n for n in lines]
    with look.drawing({"font.size": 8}):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        panels = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
        for (first, second), one in zip(panels.reshape(-1, 2), found, strict=True):
            _draw_mains(first, one, metric, look)
            _draw_shares(second, one, look)
    return figure


def _mains(one: Factorial) -> list[tuple[str, str, Estimate]]:
    """Factor, level and effect."""
    return [
        (term[0], levels[0], effect)
        for term, own in one.effects.items()
        if len(term) == 1
        for levels, effect in own.items()
    ]


def _draw_mains(axes: "Axes", one: Factorial, metric: str, look: Look) -> None:
    mains, scale = _mains(one), print_scale(metric)
    places = list(range(len(mains)))
    axes.errorbar(
        [scale * effect.mean for *_, effect in mains], places,
        xerr=[scale * (effect.half or 0) for *_, effect in mains], fmt="o", ms=4, color="C0",
    )  # fmt: skip
    axes.axvline(0, color="0.6", lw=0.8, zorder=0)
    axes.set_yticks(places, [f"{look.name(factor)} = {level}" for factor, level, _ in mains])
    axes.invert_yaxis()
    unit = "points" if in_percent(metric) else look.name(metric)
    axes.set_xlabel(f"effect on {look.name(metric)}, {unit}")
    model, dataset = map(look.name, one.task)
    title = f"{model} on {dataset}, {percent(one.sparsity)}, {len(one.seeds)} seeds"
    axes.set_title(title, loc="left")


def _draw_shares(axes: "Axes", one: Factorial, look: Look) -> None:
    names = [" x ".join(map(look.name, term)) for term in one.shares]
    values = [100 * share for share in one.shares.values()]
    places = list(range(len(names)))
    bars = axes.barh(places, values, color="C0", height=0.7)
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=2)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 115)
    axes.set_xlabel(f"share of the variance, % (sum {sum(values):.1f})")


def sentences(one: Factorial, metric: str) -> list[str]:
    """The terms with the largest shares, each with its largest effect."""
    model, dataset = one.task
    scale, unit = print_scale(metric), " points" if in_percent(metric) else ""
    said = [f"{model} on {dataset} at {percent(one.sparsity)}, {len(one.seeds)} seeds:"]
    if one.left_out:
        said[0] += f" ({one.left_out} seeds without all combinations are left out)"
    told = {term: share for term, share in one.shares.items() if share >= _SMALL}
    for term, share in sorted(told.items(), key=lambda item: -item[1]):
        own = one.effects[term]
        best = max(own, key=lambda levels: own[levels].mean)
        effect = own[best]
        half = "" if effect.half is None else f" ± {scale * effect.half:.2f}"
        said.append(
            f"  {' x '.join(term)}: {100 * share:.1f}% of the variance, most for "
            f"{' x '.join(best)}: {scale * effect.mean:+.2f}{half}{unit}"
        )
    if untold := len(one.shares) - len(told):
        said.append(f"  {untold} other terms: below {100 * _SMALL:g}% of the variance each")
    return said
