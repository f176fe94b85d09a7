"""The files of a comparison, in the formats that were asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seven_exp.compare import effects, paper, rank_diagram, search
from seven_exp.compare.conclusions import Conclusions
from seven_exp.compare.look import Look
from seven_exp.compare.page import write_html
from seven_exp.compare.plot import draw, draw_differences, write_figure
from seven_exp.compare.summary import Row
from seven_exp.compare.table import write_csv, write_lines
from seven_exp.messages import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = ("png", "svg", "pdf")
FORMATS = ("csv", "html", *PICTURES, "tex", "md")

_PARTS = {
    f"comparison_{part}"
    for part in ("differences", "contrasts", "ranks", "effects", "search", "conclusions")
}
"""Names of files that not every comparison has."""


@dataclass(frozen=True)
class Output:
    """Which files are written, and how they look.

    Attributes:
        folder: Their folder; None for that of the records.
        formats: Some of `FORMATS`.
        look: Of figures and of tables in LaTeX and Markdown; CSV and page keep the records' names.
    """

    folder: Path | None = None
    formats: Sequence[str] = ("csv", "png", "html")
    look: Look = field(default_factory=Look)

    def write(
        self,
        folder: Path,
        rows: Sequence[Row],
        metric: str,
        baseline: str | None,
        conclusions: Conclusions,
        page: Callable[[], str],
    ) -> list[str]:
        """Write the files; returns their names.

        Parts that an earlier comparison has written there, and this one does not have, are removed.

        Raises:
            OSError: The folder can't be written.
            ValueError: A name to replace or to highlight is unknown.
        """
        self.look.check(rows, metric)
        figures = self._figures(rows, metric, baseline, conclusions)
        data = {
            "comparison_contrasts": conclusions.facts(),
            "comparison_ranks": conclusions.rank_facts(),
            "comparison_effects": conclusions.effect_facts(),
        }
        data = {name: lines for name, lines in data.items() if lines}
        for name in _PARTS - figures.keys() - data.keys():
            for path in folder.glob(f"{name}.*"):
                path.unlink()
        pictures = [form for form in PICTURES if form in self.formats]
        written = [f"comparison.{form}" for form in self.formats if form not in PICTURES]
        if "csv" in self.formats:
            write_csv(folder / "comparison.csv", rows, metric)
            for name, lines in data.items():
                write_lines(folder / f"{name}.csv", lines)
                written.append(f"{name}.csv")
        if "html" in self.formats:
            write_html(folder / "comparison.html", page())
        tables = paper.tables(rows, metric, baseline, self.look, conclusions)
        captions = {name: words for name, (_, words) in figures.items()} if pictures else {}
        if "tex" in self.formats:
            # LaTeX takes the figure's best format by itself.
            paper.write_tex(folder / "comparison.tex", tables, captions)
        if "md" in self.formats:
            suffix = next((f".{form}" for form in ("svg", "png") if form in pictures), "")
            shown = captions if suffix else {}
            paper.write_markdown(folder / "comparison.md", tables, shown, suffix)
        for name, (make, _) in figures.items() if pictures else ():
            figure = make()
            for form in pictures:
                write_figure(folder / f"{name}.{form}", figure, self.look)
                written.append(f"{name}.{form}")
        return sorted(written)

    def _figures(
        self, rows: Sequence[Row], metric: str, baseline: str | None, conclusions: Conclusions
    ) -> "dict[str, tuple[Callable[[], Figure], str]]":
        """Name without suffix -> how to draw it, and its caption."""
        look, found = self.look, search.searches(rows, metric)
        captions = paper.figure_captions(rows, metric, baseline, look)
        figures: dict[str, Callable[[], Figure]] = {
            "comparison": partial(draw, rows, metric, baseline, look)
        }
        if baseline is not None and paper.has_differences(rows):
            figures["comparison_differences"] = partial(
                draw_differences, rows, metric, baseline, look
            )
        if conclusions.ranks:
            figures["comparison_ranks"] = partial(rank_diagram.draw, conclusions.ranks, look)
            captions["comparison_ranks"] = (
                f"Mean ranks of {look.name(metric)}, 1 is best; a bar joins methods that do not "
                "differ at 5% (Nemenyi)."
            )
        if conclusions.factorials:
            figures["comparison_effects"] = partial(
                effects.draw, conclusions.factorials, metric, look
            )
            captions["comparison_effects"] = effects.CAPTION
        if found:
            figures["comparison_search"] = partial(search.draw, found, look)
            captions["comparison_search"] = search.caption(found, look)
        return {name: (make, captions[name]) for name, make in figures.items()}


def parse_formats(text: str) -> list[str]:
    """Formats separated by commas.

    Raises:
        ValueError: One is unknown.
    """
    found = [form.strip() for form in text.split(",")]
    for form in found:
        if form not in FORMATS:
            raise ValueError(f"--format is '{form}': {nearest(form, FORMATS)}")
    return list(dict.fromkeys(found))
