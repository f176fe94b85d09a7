"""One self-contained page: picture, tables, and where each record lies."""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from seven_exp.atomic import replacing
from seven_exp.compare.plot import draw, styles
from seven_exp.compare.records import Record, runs_frame
from seven_exp.compare.summary import Row
from seven_exp.compare.table import SIGNIFICANT, cells, headings, percent


def write_html(
    path: Path, rows: Sequence[Row], records: Sequence[Record], metric: str, baseline: str | None
) -> None:
    """Write the page; it loads nothing from anywhere."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(
        "page.html"
    )
    look = styles(rows)
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        own = [(i, row) for i, row in enumerate(rows) if row.task == task]
        lines = [
            {
                "index": i,
                "method": look[row.method].index,
                "best": row.best,
                "first": place > 0 and own[place - 1][1].sparsity != row.sparsity,
                "cells": cells(row, metric, baseline),
            }
            for place, (i, row) in enumerate(own)
        ]
        tables.append((" on ".join(task), lines))
    page = template.render(
        metric=metric,
        baseline=baseline,
        significant=SIGNIFICANT,
        tests=sum(row.p is not None for row in rows),
        styles=look,
        width=44 if len(tables) == 1 else 62,
        picture=Markup(_svg(rows, metric)),
        headings=headings(metric, baseline),
        tables=tables,
        runs=list(_runs(path.parent, records, metric)),
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _svg(rows: Sequence[Row], metric: str) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Salt and date are fixed, so that the same rows make the same page.
    with rc_context({"svg.hashsalt": "seven_exp"}):
        draw(rows, metric, key=False).savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _runs(folder: Path, records: Sequence[Record], metric: str) -> Iterator[dict[str, Any]]:
    runs = runs_frame([record for record in records if metric in record.metrics])
    order = ["model", "dataset", "pruner", "sparsity_target", "seed"]
    for run in runs.sort_values(order).to_dict("records"):
        link = os.path.relpath(run["folder"], folder)
        yield {
            **run,
            "sparsity_target": percent(run["sparsity_target"]),
            "kept": f"{run['params_nonzero']:,}",
            "metric": f"{run[metric]:.4f}",
            "folder": link,
            "link": quote(Path(link).as_posix()),
        }
