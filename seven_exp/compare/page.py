"""One self-contained page: sections draw themselves from JSON data that the page embeds once."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seven_exp.files.atomic import replacing

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Section:
    """A section of the page.

    To add a section, append it to the list that `sections.sections` returns.

    Attributes:
        id: Unique on the page; the id of its element.
        title: Its heading.
        data: The data to draw, in JSON types; NaN and infinity become null.
        draw: JavaScript of a function ``(root, data, page) => {...}``, called once with the element
            to fill, ``data``, and the functions that ``assets/page.js`` documents (``page.chart``,
            ``page.choice``, ``page.follow``, ...); or an SVG string to insert.
        note: A sentence below the heading.
    """

    id: str
    title: str
    data: Any
    draw: str
    note: str = ""


def asset(name: str) -> str:
    """The text of a file in ``assets/``."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def render(
    title: str, notes: Sequence[str], shared: Mapping[str, Any], sections: Sequence[Section]
) -> str:
    """The page as HTML; it loads nothing else, which its content security policy enforces.

    Args:
        title: Title of the window and the page.
        notes: Lines below the title.
        shared: Data for all sections: ``page.KEY`` in JavaScript.
        sections: In the order of the page.

    Raises:
        ValueError: Two sections have the same id.
    """
    ids = [section.id for section in sections]
    if len(set(ids)) < len(ids):
        raise ValueError(f"sections: an id occurs twice among {', '.join(ids)}")
    data = {"shared": shared, "sections": {section.id: section.data for section in sections}}
    drawing = "\n".join(
        f"page.sections.push([{_json(section.id)}, {section.draw.strip().rstrip(';')}\n]);"
        for section in sections
        if not _is_picture(section)
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">",
            f"<title>{html.escape(title)}</title>",
            f"<style>\n{asset('page.css')}</style>",
            f"<main><h1>{html.escape(title)}</h1>",
            *(f'<p class="note">{html.escape(note)}</p>' for note in notes),
            '<noscript><p class="note">JavaScript draws this page, but it is switched off here. '
            "The numbers are in comparison.csv, the curves in comparison.png.</p></noscript>",
            *map(_shell, sections),
            "</main>",
            f'<script type="application/json" id="data">{_json(data)}</script>',
            f"<script>\n{asset('page.js')}\n{drawing}\npage.start();\n</script>",
            "</html>",
            "",
        ]
    )


def write_html(path: Path, page: str) -> None:
    """Write a page atomically."""
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def rounded(value: float | None, digits: int = 6) -> float | None:
    """As many significant digits as the page shows; None for values that are not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def on_grid(
    curve: Sequence[tuple[int, float | None]], grids: dict[tuple[int, ...], int]
) -> list[Any]:
    """The index of a curve's steps, which many curves share, and its values."""
    grid = grids.setdefault(tuple(step for step, _ in curve), len(grids))
    return [grid, [rounded(value, 4) for _, value in curve]]


def _shell(section: Section) -> str:
    note = f'<p class="note">{html.escape(section.note)}</p>' if section.note else ""
    title = html.escape(section.title)
    region = f'class="wide" tabindex="0" role="region" aria-label="{title}"'
    body = f"<div {region}>{section.draw}</div>" if _is_picture(section) else ""
    return (
        f'<section id="{html.escape(section.id)}"><h2>{title}</h2>{note}'
        f'<div class="body">{body}</div></section>'
    )


def _is_picture(section: Section) -> bool:
    return section.draw.lstrip().startswith("<svg")


def _json(value: Any) -> str:
    """JSON that can't end the script element."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value
