"""Tables of a paper in LaTeX and Markdown, with captions made from the runs' configs."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from seven_exp.compare.axes import along, axes
from seven_exp.compare.conclusions import HEADINGS, Conclusions
from seven_exp.compare.contrasts import Planned
from seven_exp.compare.look import Look, ranking
from seven_exp.compare.metrics import in_percent
from seven_exp.compare.plot import has_front
from seven_exp.compare.ranks import Ranks, sentences
from seven_exp.compare.records import Record, whole_config
from seven_exp.compare.statistics import SIGNIFICANT, Estimate
from seven_exp.compare.summary import Row, by_task, spans
from seven_exp.compare.table import (
    BARRED,
    DEPARTS,
    bars,
    departures,
    overlaps,
    percent,
    reservations,
    with_interval,
)
from seven_exp.files.atomic import replacing
from seven_exp.messages import capital

_SPECIAL = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "†": r"$^\dagger$", "<": "$<$", ">": "$>$", "*": r"$^{*}$"},
}

_AS_WIDE_AS_FITS = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
"""A wide table is shrunk to its column; ``graphicx`` defines it."""


@dataclass(frozen=True)
class Cell:
    """Text with half of its interval, and marks."""

    text: str
    half: str = ""
    bold: bool = False
    marks: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper; the first ``words`` columns hold text, the others numbers."""

    label: str
    caption: str
    heads: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    words: int = 1


def tables(
    rows: Sequence[Row], metric: str, baseline: str | None, look: Look, conclusions: Conclusions
) -> list[Table]:
    """For each task the means and the planned contrasts; then the mean ranks over the tasks."""
    found: list[Table] = []
    for task, own in by_task(rows):
        label = re.sub(r"[^a-z0-9]+", "-", " ".join(task).lower())
        if label in {table.label for table in found}:
            label += f"-{len(found)}"
        found.append(_means(label, own, metric, baseline, look))
        contrasts = [c for c in conclusions.contrasts if c.task == task]
        if contrasts:
            found.append(_contrasts(label, contrasts, conclusions, look))
    if conclusions.ranks:
        found.append(_ranks(conclusions.ranks, metric, look))
    return found


def write_tex(path: Path, found: Sequence[Table], figures: Mapping[str, str]) -> None:
    """Write tables for the package booktabs, and figures: file name without suffix -> caption."""
    text = ["% \\usepackage{booktabs,graphicx}"]
    for table in found:
        columns = "l" * table.words + "r" * (len(table.heads) - table.words)
        text += [
            *("\\begin{table}", "\\centering\\small"),
            # Article's caption is made for the place below, and touches what it stands above.
            "\\setlength{\\abovecaptionskip}{0pt}\\setlength{\\belowcaptionskip}{6pt}",
            *(f"\\caption{{{_tex(table.caption)}}}", f"\\label{{tab:{table.label}}}"),
            f"{_AS_WIDE_AS_FITS}\\begin{{tabular}}{{{columns}}}",
            *("\\toprule", f"{' & '.join(map(_tex, table.heads))} \\\\", "\\midrule"),
            *(" & ".join(map(_tex_cell, line)) + " \\\\" for line in table.lines),
            *("\\bottomrule", "\\end{tabular}}", "\\end{table}"),
        ]
    for name, words in figures.items():
        text += [
            *("\\begin{figure}", "\\centering", f"\\includegraphics[width=\\linewidth]{{{name}}}"),
            *(f"\\caption{{{_tex(words)}}}", f"\\label{{fig:{name}}}", "\\end{figure}"),
        ]
    _write(path, text)


def write_markdown(
    path: Path, found: Sequence[Table], figures: Mapping[str, str], suffix: str
) -> None:
    """Write tables and figures, as `write_tex` does; ``suffix`` is that of the figures."""
    text = []
    for table in found:
        rules = ["---"] * table.words + ["---:"] * (len(table.heads) - table.words)
        lines = [map(_markdown_cell, line) for line in table.lines]
        text += [
            *map(markdown_line, [table.heads, rules, *lines]),
            "",
            _markdown(table.caption),
            "",
        ]
    for name, words in figures.items():
        text += [f"![{name}]({name}{suffix})", "", _markdown(words), ""]
    _write(path, text)


def _write(path: Path, lines: Sequence[str]) -> None:
    with replacing(path) as partial:
        partial.write_text("\n".join([*lines, ""]), encoding="utf-8")


def caption(rows: Sequence[Row], metric: str, baseline: str | None, look: Look) -> str:
    """What the reader of one task's table must know: data, budget, seeds, test, correction."""
    dense = [row for row in rows if row.sparsity == 0]
    pruned = [row for row in rows if row.sparsity > 0] or rows
    seeds = sorted({seed for row in pruned for seed in row.by_seed})
    numbers = [row.result.n for row in pruned]
    unit = " in %" if in_percent(metric) else ""
    said = [
        f"{capital(look.name(metric))}{unit} of {look.task(rows[0].task)} by sparsity: "
        + (
            f"mean over {_number_of_seeds(numbers)} ({spans(seeds)}) ± half its 95% t interval"
            if max(numbers) > 1
            else f"one seed ({spans(seeds)}), no interval"
        ),
        *budget([record for row in rows for record in row.records]),
        *(f"{capital(look.name(r.method))}: {_words(r.result, metric)}" for r in dense),
        *([f"Bold: the best mean of a sparsity{_overlaps(rows)}"]),
        *_tests(rows, baseline, look),
    ]
    said += [f"{BARRED}: {words}; neither bold nor starred" for words in bars(rows, look.name)]
    said += map(capital, reservations(rows, metric, look.name))
    return ". ".join(said) + "."


def figure_captions(
    rows: Sequence[Row], metric: str, baseline: str | None, look: Look
) -> dict[str, str]:
    """File name without suffix -> caption, of the curves and the heat map."""
    tasks = ", ".join(look.task(task) for task, _ in by_task(rows))
    lines = along(rows, look.x)
    shown = look.y or metric
    records = [record for row in rows for record in row.records]
    titles = {name: title.removesuffix(", %") for name, title in axes(records).items()}
    grey = {row.method for row in lines if row.sparsity > 0} - look.coloured(
        lines, metric, baseline
    )
    common = budget(records)
    curves = [
        f"{capital(look.axis(shown, titles))} over {look.axis(look.x, titles)} of {tasks}: "
        + (
            "means over seeds with 95% t intervals, and single seeds as faint points"
            if any(row.result.n > 1 for row in rows)
            else "values of one seed, without intervals"
        ),
        *([f"Colour: {look.axis(look.colour, titles)}"] if look.colour else []),
        *(
            [f"Grey: the means of {len(grey)} other methods, which may lie outside"]
            if grey and not look.colour
            else []
        ),
        *(["Wide grey line: the Pareto front"] if has_front(lines, look, shown) else []),
        *common,
    ]
    found = {"comparison": curves}
    if baseline is not None and has_differences(rows):
        points = " in points" if in_percent(metric) else ""
        found["comparison_differences"] = [
            f"{capital(look.name(metric))}{points} minus that of {look.name(baseline)}, on "
            f"{tasks}; methods by mean rank. The row of {look.name(baseline)} holds its means",
            *_tests(rows, baseline, look),
            *common,
        ]
    return {name: ". ".join(said) + "." for name, said in found.items()}


def has_differences(rows: Sequence[Row]) -> bool:
    """Whether there is anything for the heat map to show."""
    return any(row.difference is not None and row.sparsity > 0 for row in rows)


def _means(label: str, rows: Sequence[Row], metric: str, baseline: str | None, look: Look) -> Table:
    """Methods as lines, best first, and sparsities as columns; without pruning one column."""
    pruned = [row for row in rows if row.sparsity > 0] or rows
    targets = sorted({row.sparsity for row in pruned})
    cells = {(row.method, row.sparsity): _cell(row, metric) for row in pruned}
    return Table(
        label,
        caption(rows, metric, baseline, look),
        ["method", *map(percent, targets)],
        [
            [Cell(look.name(method)), *(cells.get((method, t), Cell("")) for t in targets)]
            for method in ranking(pruned, metric)
        ],
    )


def _contrasts(
    label: str, contrasts: Sequence[Planned], conclusions: Conclusions, look: Look
) -> Table:
    """Without the number of seeds, which the caption says: a column of a paper is narrow."""
    every = [dict(zip(HEADINGS, conclusions.cells(c, look.name), strict=True)) for c in contrasts]
    heads = [head for head in HEADINGS if head != "seeds"]
    numbers = [int(line["seeds"]) for line in every if line["seeds"]]
    said = [
        f"{conclusions.heading.capitalize()} of {look.name(conclusions.metric)} of "
        f"{look.task(contrasts[0].task)}, over {_number_of_seeds(numbers)}.",
        *conclusions.captions,
    ]
    lines = [[Cell(line[head]) for head in heads] for line in every]
    return Table(f"{label}-contrasts", " ".join(said), heads, lines, words=2)


def _ranks(found: Sequence[Ranks], metric: str, look: Look) -> Table:
    means = [ranks.means for ranks in found]
    names = sorted({*chain(*means)}, key=lambda name: sum(m.get(name, math.inf) for m in means))
    said = [
        f"{percent(ranks.sparsity)}: {'; '.join(sentences(ranks, look.name))}" for ranks in found
    ]
    return Table(
        "ranks",
        f"Mean ranks of {look.name(metric)} by sparsity, 1 is best. {'. '.join(said)}.",
        ["method", *(percent(ranks.sparsity) for ranks in found)],
        [
            [
                Cell(look.name(name)),
                *(Cell(f"{m[name]:.2f}" if name in m else "") for m in means),
            ]
            for name in names
        ],
    )


def _cell(row: Row, metric: str) -> Cell:
    mean, _, half = _words(row.result, metric).partition(" ± ")
    marks = "*" * row.starred + BARRED * bool(row.barred) + DEPARTS * bool(departures(row))
    return Cell(mean, half, row.best, marks)


def _words(value: Estimate, metric: str) -> str:
    return with_interval(value, metric, signed=False).removesuffix(" ± n/a")


_COUNTS = ("steps", "params_prunable", "test_examples")


def budget(records: Sequence[Record]) -> list[str]:
    """How long and with what the runs were trained, as far as all of them agree."""
    facts: list[dict[str, Any]] = [
        {
            **(config := whole_config(record)),
            # A broken record may hold anything.
            **{key: n for key in _COUNTS if isinstance(n := record.values.get(key), int)},
            "examples": _examples_of_a_step(config),
        }
        for record in records
    ]

    def common(key: str) -> str | int | None:
        values = {fact.get(key) for fact in facts}
        value = values.pop() if len(values) == 1 else None
        return None if value == "null" else value

    def when(text: str, *keys: str) -> str:
        values = [common(key) for key in keys]
        return "" if None in values else text.format(*values)

    start = when("{} epochs at learning rate {}", "model.pretrain.epochs", "model.pretrain.lr")
    steps = when("{} steps", "steps") + when(" of {} examples", "examples")
    optimized = when(" with {} at learning rate {}", "optimizer.name", "optimizer.lr")
    trained = "no training" if common("steps") == 0 else steps + optimized
    sizes = (
        when("{:,} prunable weights", "params_prunable"),
        when("{:,} test examples", "test_examples"),
    )
    return [
        *([f"Dense start: {start}"] if common("model.pretrain.epochs") not in (None, "0") else []),
        *([f"Each run: {trained.strip()}"] if trained else []),
        *([", ".join(filter(None, sizes))] if any(sizes) else []),
    ]


def _examples_of_a_step(config: Mapping[str, str]) -> int | None:
    try:
        return int(config["trainer.batch_size"]) * int(config.get("trainer.accumulate", 1))
    except (KeyError, ValueError):
        return None


def _number_of_seeds(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no common seeds"
    low, high = min(numbers), max(numbers)
    return f"{low if low == high else f'{low} to {high}'} {'seed' if high == 1 else 'seeds'}"


def _tests(rows: Sequence[Row], baseline: str | None, look: Look) -> list[str]:
    """The test behind the stars."""
    found = [row.difference for row in rows if row.difference]
    tested = [row for row in rows if row.p is not None]
    if baseline is None or not tested:
        return []
    kind = "paired t tests over seeds" if found[0].test == "paired" else "Welch's t tests"
    sizes = sorted({row.family for row in tested})
    tests = " or ".join(str(size) for size in sizes) + (" test" if sizes == [1] else " tests")
    at_each = Counter(row.sparsity for row in tested)
    if all(row.family == at_each[row.sparsity] for row in tested):
        family = " at each sparsity" if len(at_each) > 1 else ""
    else:
        family = " at all sparsities" if sizes == [len(tested)] else " of all tables"
    return [
        f"*: differs from {look.name(baseline)} with p < {SIGNIFICANT:g} ({kind}, "
        f"Holm's correction over {tests}{family})"
    ]


def _overlaps(rows: Sequence[Row]) -> str:
    words = overlaps(rows)
    return f", whose {words}" if words else ""


def _tex(words: str) -> str:
    r"""Text with TeX's special letters escaped, except in ``$...$`` and ``\$``."""
    parts = re.split(r"(\\\$|\$[^$]*\$)", words)
    return "".join(
        part if i % 2 else "".join(_SPECIAL.get(letter, letter) for letter in part)
        for i, part in enumerate(parts)
    )


def _tex_cell(cell: Cell) -> str:
    text = f"\\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)
    half = f"\\,{{\\scriptsize$\\pm${cell.half}}}" if cell.half else ""
    # Marks take no room, so that numbers stay in line.
    marks = f"\\rlap{{{_tex(cell.marks)}}}" if cell.marks else ""
    return text + half + marks


def _markdown(words: str) -> str:
    return words.replace("*", "\\*")


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.bold else cell.text
    half = f" ± {cell.half}" if cell.half else ""
    return text + half + _markdown(cell.marks)


def markdown_line(cells: Iterable[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
