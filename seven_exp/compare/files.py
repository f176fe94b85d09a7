"""The files of a comparison, in the formats that were asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seven_exp.compare.look import Look
from seven_exp.compare.page import write_html
from seven_exp.compare.paper import has_differences, write_markdown, write_tex
from seven_exp.compare.plot import draw, draw_differences, write_figure
from seven_exp.compare.summary import Row
from seven_exp.compare.table import write_csv
from seven_exp.registry import nearest

PICTURES = ("png", "svg", "pdf")
FORMATS = ("csv", "html", *PICTURES, "tex", "md")


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
        page: Callable[[], str],
    ) -> str:
        """Write the files; returns their names in few words.

        Raises:
            OSError: The folder can't be written.
            ValueError: A name to replace or to highlight is unknown.
        """
        self.look.check(rows, metric)
        pictures = [form for form in PICTURES if form in self.formats]
        table = (rows, metric, baseline, self.look)
        for form in self.formats:
            path = folder / f"comparison.{form}"
            if form == "csv":
                write_csv(path, rows, metric)
            elif form == "html":
                write_html(path, page())
            elif form == "tex":
                # LaTeX takes the figure's best format by itself.
                write_tex(path, *table, figures=bool(pictures))
            elif form == "md":
                shown = [form for form in ("svg", "png") if form in pictures]
                write_markdown(path, *table, picture=f".{shown[0]}" if shown else "")
        names = [f".{form}" for form in self.formats]
        figures = {"comparison": draw(*table)} if pictures else {}
        if pictures and baseline is not None and has_differences(rows):
            figures["comparison_differences"] = draw_differences(rows, metric, baseline, self.look)
            names += [f"_differences.{form}" for form in pictures]
        for name, figure in figures.items():
            for form in pictures:
                write_figure(folder / f"{name}.{form}", figure)
        return f"{folder / 'comparison'}{', '.join(names)}"


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
