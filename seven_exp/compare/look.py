"""How figures and tables of a paper look: names as printed, highlighted methods, width, style."""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from seven_exp.compare.axes import axes, place
from seven_exp.compare.metrics import smaller_is_better
from seven_exp.compare.summary import Row
from seven_exp.messages import nearest, one_line

# Okabe and Ito's palette for colour-blind readers, without yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

MOST_COLOURS = 7
"""Number of methods that a reader can tell apart by colour; more are drawn in grey."""

_UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}


@dataclass(frozen=True)
class Look:
    """The user's choices for figures and tables.

    Attributes:
        names: Name of a method, pruner, setting, model, data set or metric -> name as printed.
        highlight: Patterns such as ``seven_*``, of methods or pruners.
        width: Width of the figures in inches; None for the screen's.
        styles: Names or files of matplotlib's style sheets; a later one has precedence.
        x: What the curves run over: one of `axes`.
        y: What they show; None for the metric.
        colour: What colours the means; None for their methods.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    highlight: Sequence[str] = ()
    width: float | None = None
    styles: Sequence[str] = ()
    x: str = "sparsity"
    y: str | None = None
    colour: str | None = None

    def name(self, name: str) -> str:
        r"""A name as printed; that of a method with settings is replaced word by word.

        In it ``$...$`` is mathematics, which only a user's name can have, and ``\$`` a dollar.
        """
        return self.names.get(name) or " ".join(map(self._word, name.split(" ")))

    def _word(self, word: str) -> str:
        key, equals, value = (part.replace("$", r"\$") for part in word.partition("="))
        return self.names.get(word) or f"{self.names.get(key, key)}{equals}{value}"

    def axis(self, name: str, titles: Mapping[str, str]) -> str:
        """The title of one of `axes`, given those."""
        return self.names.get(name, titles[name])

    @property
    def size(self) -> int:
        """Points of text: fewer in a paper than on a screen."""
        return 8 if self.width else 10

    def drawing(self, settings: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Draw with these settings of matplotlib, which the user's styles replace."""
        from cycler import cycler
        from matplotlib import style

        own: dict[Any, Any] = {
            "axes.prop_cycle": cycler(color=COLOURS),
            **{"axes.spines.top": False, "axes.spines.right": False},
        }
        return style.context([{**own, **settings}, *self.styles])

    def task(self, task: tuple[str, str]) -> str:
        """The title of a model and data set."""
        return " on ".join(map(self.name, task))

    def coloured(self, rows: Sequence[Row], metric: str, baseline: str | None) -> set[str]:
        """The methods to tell apart by colour: the highlighted ones, or as many as fit.

        If they don't fit, the baseline is chosen, the best of each sparsity, and those of the best
        ranks.
        """
        pruning = [row for row in rows if row.sparsity > 0]
        if self.highlight:
            return {row.method for row in pruning if self.highlights(row)}
        order = ranking(pruning, metric)
        if len(order) <= MOST_COLOURS:
            return set(order)
        kept = [row.method for row in pruning if baseline in (row.method, row.pruner)][:1]
        best = [row.method for row in pruning if row.best]
        return {*list(dict.fromkeys([*kept, *best, *order]))[:MOST_COLOURS]}

    def highlights(self, row: Row) -> bool:
        """Whether a pattern matches the row's method or pruner."""
        return any(fnmatchcase(n, p) for p in self.highlight for n in (row.method, row.pruner))

    def check(self, rows: Sequence[Row], metric: str) -> None:
        """Check that the names exist.

        Raises:
            ValueError: The axis, a pattern or a name to replace is unknown, or two methods of a
                task get one name.
        """
        methods = {name for row in rows for name in (row.method, row.pruner)}
        for pattern in self.highlight:
            if not any(fnmatchcase(name, pattern) for name in methods):
                raise ValueError(f"--highlight is '{pattern}': {nearest(pattern, methods)}")
        known = methods | {metric} | {name for row in rows for name in row.task}
        known |= {word for row in rows for k, v in row.settings.items() for word in (k, f"{k}={v}")}
        offered = axes(record for row in rows for record in row.records)
        for option in ("x", "y", "colour"):
            axis = getattr(self, option)
            if axis is not None and axis not in offered:
                raise ValueError(f"--{option} is '{axis}': {nearest(axis, offered)}")
            if axis is not None and all(place(row, axis) is None for row in rows):
                raise ValueError(f"--{option} is '{axis}': no run has a number there")
        known |= offered.keys()
        for name in self.names:
            if name not in known:
                raise ValueError(f"--rename is '{name}=...': {nearest(name, known)}")
        shown: dict[object, str] = {}
        for row in rows:
            nice = self.name(row.method)
            if (other := shown.setdefault((row.task, nice), row.method)) != row.method:
                both = " and ".join(f"'{name}'" for name in sorted((other, row.method)))
                raise ValueError(f"--rename: {both} would both be '{nice}'")


def parse_width(text: str) -> float:
    """A length such as "3.25in", "8.5cm" or "246pt" (TeX's points), in inches.

    Raises:
        ValueError: It is none, or not between 1 and 40 inches.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(in|cm|mm|pt)", text)
    width = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 1 <= width <= 40:
        raise ValueError(f"--width is '{text}': expected 1in to 40in, such as 3.25in, 8cm or 246pt")
    return width


def check_styles(styles: Sequence[str]) -> None:
    """Check that the style sheets exist and can be drawn with.

    Raises:
        ValueError: One does not, or needs LaTeX, which is not installed.
    """
    from matplotlib import rcParams, style

    for name in styles:
        try:
            with style.context(name):
                needs_latex = rcParams["text.usetex"] and shutil.which("latex") is None
        except OSError:
            known = [*style.available, *map(str, Path().glob("*.mplstyle"))]
            raise ValueError(f"--style is '{name}': {nearest(name, known)}") from None
        except ValueError as error:
            raise ValueError(
                f"--style is '{name}': not a style sheet of matplotlib: {one_line(error)}"
            ) from error
        if needs_latex:
            raise ValueError(f"--style is '{name}': its text.usetex needs LaTeX, none is installed")


def check_fonts(look: Look) -> None:
    """Check that the fonts of the figures have all characters of the names.

    Raises:
        ValueError: One is missing, which would be an empty box.
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, get_font

    with look.drawing({}):
        families = list(rcParams["font.family"])
        fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    for name, nice in look.names.items():
        for letter in "".join(nice.split("$")[::2]):
            if not any(font.get_char_index(ord(letter)) for font in fonts):
                raise ValueError(
                    f"--rename is '{name}={nice}': the font {' or '.join(families)} has no "
                    f"'{letter}': choose another by --style FILE.mplstyle, with a line such as "
                    "font.family: Noto Sans CJK JP"
                )


def parse_names(pairs: Iterable[str]) -> dict[str, str]:
    """``NAME=NICE`` -> its entry; NICE begins at the last "=", because a NAME may have settings.

    Raises:
        ValueError: A part is missing.
    """
    found = {}
    for pair in pairs:
        name, _, nice = pair.rpartition("=")
        if not (name and nice):
            raise ValueError(f"--rename is '{pair}': expected NAME=NICE, such as seven_dyn=SEVEN")
        if "$" in nice:
            _check_mathematics(pair, nice)
        found[name] = nice
    return found


def _check_mathematics(pair: str, text: str) -> None:
    from matplotlib.mathtext import MathTextParser

    try:
        MathTextParser("path").parse(text)
        if len(re.findall(r"(?<!\\)\$", text)) % 2:
            raise ValueError("a $ has no partner")
    except ValueError as error:
        words = str(error).strip().splitlines()[-1]
        raise ValueError(f"--rename is '{pair}': not mathematics as in TeX: {words}") from error


def ranking(rows: Iterable[Row], metric: str) -> list[str]:
    """Methods, best first, by their mean rank over the tasks and sparsities that they have."""
    sign = 1 if smaller_is_better(metric) else -1
    rivals: dict[object, list[tuple[float, str]]] = defaultdict(list)
    for row in rows:
        rivals[row.place].append((sign * row.result.mean, row.method))
    ranks: dict[str, list[float]] = defaultdict(list)
    for costs in rivals.values():
        for cost, method in costs:
            # Ties share the mean of their ranks.
            ranks[method].append(sum((c < cost) + 0.5 * (c == cost) for c, _ in costs))
    return sorted(ranks, key=lambda method: (sum(ranks[method]) / len(ranks[method]), method))
