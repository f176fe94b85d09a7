"""Planned contrasts and mean ranks on the terminal, as CSV, Markdown and JSON, and on the page."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from seven_exp.compare.contrasts import (
    Planned,
    p_words,
    planned,
    power_sentence,
    sentence,
)
from seven_exp.compare.inference import Inference
from seven_exp.compare.page import Section, asset
from seven_exp.compare.ranks import Ranks, rank, sentences
from seven_exp.compare.summary import Row
from seven_exp.compare.table import percent, with_interval
from seven_exp.console import table_console
from seven_exp.files.atomic import replacing
from seven_exp.tracking import write_json

HEADINGS = ("sparsity", "contrast", "difference", "seeds", "p (Holm)", "equivalence", "result")

NAMED_LATE = "named when comparing: planned only if they were chosen before the results"


@dataclass(frozen=True)
class Conclusions:
    """What one metric's rows show.

    Attributes:
        metric: Its name.
        inference: The options of the tests.
        contrasts: The planned ones; empty if none was planned.
        ranks: One for each sparsity; empty for a single task.
        notes: Planned contrasts that have no result.
    """

    metric: str
    inference: Inference
    contrasts: Sequence[Planned]
    ranks: Sequence[Ranks]
    notes: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[Row], metric: str, inference: Inference) -> "Conclusions":
        """Test the plan and rank the methods.

        Raises:
            ValueError: A contrast names no method of the rows.
        """
        contrasts, notes = planned(rows, metric, inference)
        return cls(metric, inference, contrasts, rank(rows, metric), notes)

    @property
    def captions(self) -> list[str]:
        """What a reader of the contrasts must know, one sentence each."""
        if not self.contrasts:
            return []
        family = (
            "the planned contrasts of one sparsity of a task"
            if self.inference.family == "sparsity"
            else "all planned contrasts, at all sparsities and tasks"
        )
        sizes = sorted({contrast.family for contrast in self.contrasts})
        said = [
            f"Contrasts {self.inference.stated or NAMED_LATE}.",
            f"p after Holm's correction over {family} "
            f"({' or '.join(map(str, sizes))} here); intervals are of single contrasts.",
        ]
        if self.inference.margin is not None:
            said.append("Equivalence: two one-sided t tests against the margin, corrected alike.")
        return said

    def cells(self, contrast: Planned) -> list[str]:
        """A contrast as text, in the order of `HEADINGS`."""
        found = contrast.difference
        return [
            percent(contrast.ours.sparsity),
            f"{contrast.ours.method} - {contrast.theirs.method if contrast.theirs else '?'}",
            "" if found is None else with_interval(found.estimate, self.metric, signed=True),
            "" if found is None else str(found.estimate.n),
            "" if contrast.p is None else p_words(contrast.p),
            "" if contrast.p_equivalence is None else p_words(contrast.p_equivalence),
            contrast.verdict,
        ]

    def said(self, contrast: Planned) -> str:
        """A contrast in sentences."""
        words = sentence(contrast, self.metric)
        more = power_sentence(contrast, self.metric)
        return f"{words} {more[0].upper()}{more[1:]}." if more else words

    def print(self) -> None:
        """Print the tables and sentences."""
        console = table_console()
        for task in dict.fromkeys(contrast.ours.task for contrast in self.contrasts):
            own = [contrast for contrast in self.contrasts if contrast.ours.task == task]
            title = Text(f"planned contrasts: {' on '.join(task)}")
            table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
            for heading in HEADINGS:
                table.add_column(heading)
            for contrast in own:
                table.add_row(*map(Text, self.cells(contrast)))
            console.print(table)
            for contrast in own:
                sparsity, pair, *_ = self.cells(contrast)
                words = f"{pair} at {sparsity}: {self.said(contrast)}"
                console.print(Text(words), soft_wrap=True)
        for line in self.captions:
            console.print(Text(line), soft_wrap=True)
        for ranks in self.ranks:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column(f"mean rank at {percent(ranks.sparsity)}", justify="right")
            table.add_column("method")
            for method, mean in ranks.means.items():
                table.add_row(f"{mean:.2f}", Text(method))
            console.print(table)
            for line in sentences(ranks):
                console.print(Text(line), soft_wrap=True)

    def write(self, folder: Path) -> list[str]:
        """Write the files that have content into a folder; returns their names.

        Raises:
            OSError: A file can't be written.
        """
        written = []
        if self.contrasts:
            write_table(folder / "comparison_contrasts.csv", self.facts())
            written.append("comparison_contrasts.csv")
        if self.ranks:
            from seven_exp.compare.rank_diagram import write_image

            write_table(folder / "comparison_ranks.csv", self.rank_facts())
            write_image(folder / "comparison_ranks.svg", self.ranks)
            written += ["comparison_ranks.csv", "comparison_ranks.svg"]
        if written:
            write_json(folder / "comparison_conclusions.json", self.as_json())
            with replacing(folder / "comparison_conclusions.md") as partial:
                partial.write_text(self.as_markdown(), encoding="utf-8")
            written += ["comparison_conclusions.json", "comparison_conclusions.md"]
        return written

    def facts(self) -> list[dict[str, Any]]:
        """The contrasts' numbers in full precision."""
        return [
            {
                **dict(zip(("model", "dataset"), c.ours.task, strict=True)),
                "sparsity": c.ours.sparsity,
                "metric": self.metric,
                "method": c.ours.method,
                "minus": c.theirs and c.theirs.method,
                "difference": c.difference and c.difference.estimate.mean,
                "half_interval_95": c.difference and c.difference.estimate.half,
                "seeds": c.difference and c.difference.estimate.n,
                "test": c.difference and c.difference.test,
                "p": c.difference and c.difference.p,
                "p_holm": c.p,
                "p_equivalence_holm": c.p_equivalence,
                "family": c.family,
                "verdict": c.verdict,
                "resolves": c.resolves,
                "to_resolve": c.to_resolve,
                "seeds_to_resolve": c.seeds,
                "words": self.said(c),
            }
            for c in self.contrasts
        ]

    def rank_facts(self) -> list[dict[str, Any]]:
        """The mean ranks in full precision."""
        return [
            {
                "sparsity": ranks.sparsity,
                "metric": self.metric,
                "method": method,
                "mean_rank": mean,
                "tasks": len(ranks.tasks),
                "friedman_chi_squared": ranks.statistic,
                "friedman_p": ranks.p,
                "critical_difference": ranks.critical,
            }
            for ranks in self.ranks
            for method, mean in ranks.means.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "metric": self.metric,
            "contrasts": self.facts(),
            "margin": self.inference.margin,
            "family": self.inference.family,
            "stated": self.inference.stated or NAMED_LATE,
            "notes": list(self.notes),
            "ranks": self.rank_facts(),
        }

    def as_markdown(self) -> str:
        """Tables and sentences."""
        parts = []
        for task in dict.fromkeys(contrast.ours.task for contrast in self.contrasts):
            own = [contrast for contrast in self.contrasts if contrast.ours.task == task]
            lines = [[*self.cells(c)[:-1], self.said(c)] for c in own]
            parts += [f"**Planned contrasts: {' on '.join(task)}**", _markdown(HEADINGS, lines)]
        parts += self.captions
        for ranks in self.ranks:
            means = [[method, f"{mean:.2f}"] for method, mean in ranks.means.items()]
            parts.append(f"**Mean ranks at {percent(ranks.sparsity)}**")
            parts += [_markdown(("method", "mean rank"), means), *_sentences(ranks)]
        return "\n\n".join(parts) + "\n"

    def sections(self) -> list[Section]:
        """Sections of the page; none if there is nothing to say."""
        found = []
        if self.contrasts:
            lines = [
                [" on ".join(c.ours.task), *self.cells(c)[:-1], self.said(c)]
                for c in self.contrasts
            ]
            data = {"heads": ["model and data set", *HEADINGS], "lines": lines}
            title, note = f"Planned contrasts of {self.metric}", " ".join(self.captions)
            found.append(Section("contrasts", title, data, asset("contrasts.js"), note))
        if self.ranks:
            from seven_exp.compare.rank_diagram import as_svg

            said = [f"{percent(r.sparsity)}: {line}" for r in self.ranks for line in _sentences(r)]
            title = f"Mean ranks of {self.metric} over the tasks"
            found.append(Section("ranks", title, {}, as_svg(self.ranks), " ".join(said)))
        return found


def write_table(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Mappings with equal keys as CSV.

    Raises:
        OSError: It can't be written.
    """
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def _sentences(ranks: Ranks) -> list[str]:
    return [f"{line[0].upper()}{line[1:]}." for line in sentences(ranks)]
