"""Tables of a paper in LaTeX and Markdown, with captions made from the runs' configs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seven_exp.compare.axes import along
from seven_exp.compare.look import Look, ranking
from seven_exp.compare.metrics import in_percent
from seven_exp.compare.records import Record, whole_config
from seven_exp.compare.statistics import SIGNIFICANT, Estimate
from seven_exp.compare.summary import Row, spans
from seven_exp.compare.table import BARRED, captions, percent
from seven_exp.files.atomic import replacing

_SPECIAL = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "†": r"$^\dagger$", "<": "$<$", ">": "$>$", "*": r"$^{*}$"},
}


@dataclass(frozen=True)
class _Cell:
    """A mean as text, half its interval, and its marks."""

    mean: str
    half: str
    best: bool
    marks: str


def write_tex(
    path: Path, rows: Sequence[Row], metric: str, baseline: str | None, look: Look, figures: bool
) -> None:
    """Write tables for the package booktabs; with ``figures``, the figures with captions too."""
    text = ["% \\usepackage{booktabs,graphicx}"]
    for task, own in _tasks(rows):
        lines = _grid(own, metric, look)
        heads = " & ".join(["method", *map(_tex, lines.targets)])
        label = re.sub(r"[^a-z0-9]+", "-", " ".join(task).lower())
        text += [
            *("\\begin{table}", "\\centering\\small"),
            f"\\caption{{{_tex(caption(own, metric, baseline, look))}}}",
            f"\\label{{tab:{label}}}",
            f"\\begin{{tabular}}{{l{'r' * len(lines.targets)}}}",
            *("\\toprule", f"{heads} \\\\", "\\midrule"),
            *(
                " & ".join([_tex(name), *(_tex_cell(cell) for cell in cells)]) + " \\\\"
                for name, cells in lines.methods.items()
            ),
            *("\\bottomrule", "\\end{tabular}", "\\end{table}"),
        ]
    for name, words in figure_captions(rows, metric, baseline, look).items() if figures else ():
        text += [
            *("\\begin{figure}", "\\centering", f"\\includegraphics[width=\\linewidth]{{{name}}}"),
            *(f"\\caption{{{_tex(words)}}}", f"\\label{{fig:{name}}}", "\\end{figure}"),
        ]
    with replacing(path) as partial:
        partial.write_text("\n".join([*text, ""]), encoding="utf-8")


def write_markdown(
    path: Path, rows: Sequence[Row], metric: str, baseline: str | None, look: Look, picture: str
) -> None:
    """Write tables; with a ``picture``'s suffix, the figures with captions too."""
    text = []
    for _, own in _tasks(rows):
        lines = _grid(own, metric, look)
        text += [
            *(_bar(["method", *lines.targets]), _bar(["---", *["---:"] * len(lines.targets)])),
            *(_bar([name, *map(_markdown_cell, cells)]) for name, cells in lines.methods.items()),
            *("", caption(own, metric, baseline, look).replace("*", "\\*"), ""),
        ]
    for name, words in figure_captions(rows, metric, baseline, look).items() if picture else ():
        text += [f"![{name}]({name}{picture})", "", words.replace("*", "\\*"), ""]
    with replacing(path) as partial:
        partial.write_text("\n".join(text), encoding="utf-8")


def caption(rows: Sequence[Row], metric: str, baseline: str | None, look: Look) -> str:
    """What the reader of one task's table must know: data, budget, seeds, test, correction."""
    seeds = sorted({seed for row in rows for seed in row.by_seed})
    numbers = sorted({row.result.n for row in rows})
    over = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    unit = " in %" if in_percent(metric) else ""
    dense = [row for row in rows if row.sparsity == 0]
    said = [
        f"{_capital(look.name(metric))}{unit} of {look.task(rows[0].task)} by sparsity: mean over "
        f"{over} seeds ({spans(seeds)}) ± half its 95% t interval",
        *budget([record for row in rows for record in row.records]),
        *(f"{_capital(look.name(r.method))}: {_words(r.result, metric)}" for r in dense),
        *([f"Bold: the best mean of a sparsity{_overlaps(rows, metric)}"]),
        *_tests(rows, baseline, look),
    ]
    if any(row.barred for row in rows):
        said.append(
            f"{BARRED}: seeds without a result, or fewer than a rival has; neither bold nor starred"
        )
    return ". ".join(said) + "."


def figure_captions(
    rows: Sequence[Row], metric: str, baseline: str | None, look: Look
) -> dict[str, str]:
    """File name without suffix -> caption, of the figures that there are."""
    tasks = ", ".join(look.task(task) for task, _ in _tasks(rows))
    lines = along(rows, look.x)
    grey = {row.method for row in lines if row.sparsity > 0} - look.coloured(
        lines, metric, baseline
    )
    common = budget([record for row in rows for record in row.records])
    curves = [
        f"{_capital(look.name(metric))} over {look.name(look.x)} of {tasks}: means over seeds with "
        "95% t intervals, and single seeds as faint points",
        *([f"Grey: the means of {len(grey)} other methods"] if grey else []),
        *common,
    ]
    found = {"comparison": curves}
    if baseline is not None and has_differences(rows):
        points = " in points" if in_percent(metric) else ""
        found["comparison_differences"] = [
            f"{_capital(look.name(metric))}{points} minus that of {look.name(baseline)}, on "
            f"{tasks}; methods by mean rank. The row of {look.name(baseline)} holds its means",
            *_tests(rows, baseline, look),
            *common,
        ]
    return {name: ". ".join(said) + "." for name, said in found.items()}


def has_differences(rows: Sequence[Row]) -> bool:
    """Whether there is anything for the heat map to show."""
    return any(row.difference is not None and row.sparsity > 0 for row in rows)


@dataclass(frozen=True)
class _Grid:
    """The table of one task: its sparsities, and each method's cells, best method first."""

    targets: list[str]
    methods: Mapping[str, list[_Cell | None]]


def _grid(rows: Sequence[Row], metric: str, look: Look) -> _Grid:
    """Methods as lines, sparsities as columns; without pruning there is a single column."""
    pruned = [row for row in rows if row.sparsity > 0] or rows
    targets = sorted({row.sparsity for row in pruned})
    cells = {(row.method, row.sparsity): _cell(row, metric) for row in pruned}
    return _Grid(
        list(map(percent, targets)),
        {
            look.name(method): [cells.get((method, target)) for target in targets]
            for method in ranking(pruned, metric)
        },
    )


def _cell(row: Row, metric: str) -> _Cell:
    mean, _, half = _words(row.result, metric).partition(" ± ")
    marks = ("*" if row.starred else "") + (BARRED if row.barred else "")
    return _Cell(mean, half, row.best, marks)


def _words(value: Estimate, metric: str) -> str:
    scale, digits = (100, 2) if in_percent(metric) else (1, 4)
    half = "" if value.half is None else f" ± {scale * value.half:.{digits}f}"
    return f"{scale * value.mean:.{digits}f}{half}"


_COUNTS = ("steps", "params_prunable", "test_examples")


def budget(records: Sequence[Record]) -> list[str]:
    """How long and with what the runs were trained, as far as all of them agree."""
    facts: list[dict[str, Any]] = [
        {
            **whole_config(record),
            # A broken record may hold anything.
            **{key: n for key in _COUNTS if isinstance(n := record.values.get(key), int)},
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

    steps = when("{} steps", "steps") + when(" of {} examples", "trainer.batch_size")
    trained = steps + when(" with {} at learning rate {}", "optimizer.name", "optimizer.lr")
    sizes = (
        when("{:,} prunable weights", "params_prunable"),
        when("{:,} test examples", "test_examples"),
    )
    return [
        *([f"Each run: {trained.strip()}"] if trained else []),
        *([", ".join(filter(None, sizes))] if any(sizes) else []),
    ]


def _tests(rows: Sequence[Row], baseline: str | None, look: Look) -> list[str]:
    """The test behind the stars."""
    found = [row.difference for row in rows if row.difference]
    tested = [row for row in rows if row.p is not None]
    if baseline is None or not tested:
        return []
    kind = "paired t tests over seeds" if found[0].test == "paired" else "Welch's t tests"
    sizes = sorted({row.family for row in tested})
    tests = " or ".join(str(size) for size in sizes) + (" test" if sizes == [1] else " tests")
    family = "" if sizes == [len(tested)] else " at each sparsity"
    return [
        f"*: differs from {look.name(baseline)} with p < {SIGNIFICANT:g} ({kind}, "
        f"Holm's correction over {tests}{family})"
    ]


def _overlaps(rows: Sequence[Row], metric: str) -> str:
    words = next((w for w in captions(rows, metric) if w.startswith("bold is")), "")
    return words.replace("bold is the best mean, no ranking: its", ", whose")


def _tasks(rows: Sequence[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    return [(t, [r for r in rows if r.task == t]) for t in dict.fromkeys(r.task for r in rows)]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _tex(words: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in words)


def _tex_cell(cell: _Cell | None) -> str:
    if cell is None:
        return ""
    mean = f"\\textbf{{{cell.mean}}}" if cell.best else cell.mean
    half = f"\\,{{\\scriptsize$\\pm${cell.half}}}" if cell.half else ""
    return f"{mean}{half}{_tex(cell.marks)}"


def _markdown_cell(cell: _Cell | None) -> str:
    if cell is None:
        return ""
    mean = f"**{cell.mean}**" if cell.best else cell.mean
    half = f" ± {cell.half}" if cell.half else ""
    return mean + half + cell.marks.replace("*", "\\*")


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
