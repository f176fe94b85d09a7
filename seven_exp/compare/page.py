"""One self-contained page: picture, table, and where each record lies."""

import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

from seven_exp.atomic import replacing
from seven_exp.compare.plot import draw
from seven_exp.compare.records import Record
from seven_exp.compare.summary import Row
from seven_exp.compare.table import cells, headings

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:nth-child(2), td:nth-child(2), .runs td, .runs th { text-align: left; }
tr.best td { font-weight: 600; }
tr.first td { border-top: 2px solid #999; }
caption, p.note { text-align: left; color: #555; }
@media print { body { margin: 0; max-width: none; } details { display: none; } }
"""


def write_html(
    path: Path, rows: Sequence[Row], records: Sequence[Record], metric: str, baseline: str | None
) -> None:
    """Write the page; it loads nothing from anywhere."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>Comparison by {html.escape(metric)}</title><style>{_STYLE}</style>",
        f"<h1>Comparison by {html.escape(metric)}</h1>",
        _picture(rows, metric),
        "<p class='note'>Lines join means over seeds; bars are 95% Student t intervals of the "
        "mean; faint points are single seeds. Differences are paired by seed, with their own 95% "
        "intervals; * marks p &lt; 0.05 after Holm's correction over the whole table. The best "
        "mean of each sparsity is bold.</p>",
    ]
    for task in dict.fromkeys((row.model, row.dataset) for row in rows):
        parts.append(f"<h2>{html.escape(' on '.join(task))}</h2>")
        chosen = [row for row in rows if (row.model, row.dataset) == task]
        parts.append(_table(chosen, metric, baseline))
    parts.append(_runs(path.parent, records, metric))
    with replacing(path) as partial:
        partial.write_text("\n".join(parts) + "\n</html>\n", encoding="utf-8")


def _picture(rows: Sequence[Row], metric: str) -> str:
    buffer = io.StringIO()
    draw(rows, metric).savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _table(rows: Sequence[Row], metric: str, baseline: str | None) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings(metric, baseline))
    body = []
    for before, row in zip([None, *rows], rows, strict=False):
        classes = ["best"] * row.best
        classes += ["first"] * (before is None or before.sparsity != row.sparsity)
        line = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row, metric))
        body.append(f"<tr class='{' '.join(classes)}'>{line}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _runs(folder: Path, records: Sequence[Record], metric: str) -> str:
    lines = []
    order = sorted(
        records,
        key=lambda r: (r.task, r.values["pruner"], r.values["sparsity_target"], r.values["seed"]),
    )
    for record in order:
        link = html.escape(os.path.relpath(record.folder / "results.json", folder), quote=True)
        value = record.values["metrics"].get(metric)
        shown = (
            *(record.values[key] for key in ("pruner", "sparsity_target", "seed")),
            "" if value is None else f"{value:.4f}",
        )
        line = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in shown)
        lines.append(f"<tr>{line}<td><a href='{link}'>{link}</a></td></tr>")
    titles = ("pruner", "sparsity", "seed", metric, "record")
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    return (
        f"<details><summary>{len(records)} runs</summary><table class='runs'>"
        f"<tr>{head}</tr>{''.join(lines)}</table></details>"
    )
