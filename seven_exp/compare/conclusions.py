"""Planned contrasts and mean ranks: on the terminal, on the page, and as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from seven_exp.compare import effects, rank_diagram
from seven_exp.compare.contrasts import Planned, p_words, planned, power_sentence, sentence
from seven_exp.compare.inference import Inference
from seven_exp.compare.page import Section, asset
from seven_exp.compare.plot import as_svg
from seven_exp.compare.ranks import Ranks, rank, sentences
from seven_exp.compare.summary import Row
from seven_exp.compare.table import percent, with_interval
from seven_exp.console import table_console
from seven_exp.messages import capital

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
        factorials: One for each task and sparsity; empty if no factors were named.
        notes: Planned contrasts that have no result.
    """

    metric: str
    inference: Inference
    contrasts: Sequence[Planned]
    ranks: Sequence[Ranks]
    factorials: Sequence[effects.Factorial]
    notes: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[Row], metric: str, inference: Inference) -> "Conclusions":
        """Test the plan and rank the methods.

        Raises:
            ValueError: A contrast names no method of the rows, or the named factors are not
                crossed.
        """
        contrasts, notes = planned(rows, metric, inference)
        factors = inference.factors
        crossed = effects.factorials(rows, factors) if factors else []
        return cls(metric, inference, contrasts, rank(rows, metric), crossed, notes)

    @property
    def heading(self) -> str:
        """The name of the contrasts: planned ones were stated before the runs."""
        return "planned contrasts" if self.inference.stated else "contrasts"

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
        if self.notes:
            many = "one has" if len(self.notes) == 1 else f"{len(self.notes)} have"
            said.append(f"Of the plan {many} no result here and counted with p = 1.")
        if self.inference.margin is not None:
            said.append("Equivalence: two one-sided t tests against the margin, corrected alike.")
        return said

    def cells(self, contrast: Planned, name: Callable[[str], str] = str) -> list[str]:
        """A contrast as text, in the order of `HEADINGS`; ``name`` says how methods are called."""
        found = contrast.difference
        return [
            percent(contrast.sparsity),
            " - ".join(map(name, contrast.names)),
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
        return f"{words} {capital(more)}." if more else words

    def print(self) -> None:
        """Print the tables and sentences."""
        console = table_console()
        for task in dict.fromkeys(contrast.task for contrast in self.contrasts):
            own = [contrast for contrast in self.contrasts if contrast.task == task]
            title = Text(f"{self.heading}: {' on '.join(task)}")
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
        for factorial in self.factorials:
            for line in effects.sentences(factorial, self.metric):
                console.print(Text(line), soft_wrap=True)

    def facts(self) -> list[dict[str, Any]]:
        """The contrasts' numbers in full precision."""
        return [
            {
                **dict(zip(("model", "dataset"), c.task, strict=True)),
                "sparsity": c.sparsity,
                "metric": self.metric,
                **dict(zip(("method", "minus"), c.names, strict=True)),
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

    def effect_facts(self) -> list[dict[str, Any]]:
        """The effects in full precision."""
        return [line for one in self.factorials for line in one.lines(self.metric)]

    def sections(self) -> list[Section]:
        """Sections of the page; none if there is nothing to say."""
        found = []
        if self.contrasts:
            lines = [
                [" on ".join(c.task), *self.cells(c)[:-1], self.said(c)] for c in self.contrasts
            ]
            data = {"heads": ["model and data set", *HEADINGS], "lines": lines}
            title = f"{self.heading.capitalize()} of {self.metric}"
            note = " ".join(self.captions)
            found.append(Section("contrasts", title, data, asset("contrasts.js"), note))
        if self.ranks:
            said = [
                f"{percent(ranks.sparsity)}: {capital(line)}."
                for ranks in self.ranks
                for line in sentences(ranks)
            ]
            title = f"Mean ranks of {self.metric} over the tasks"
            found.append(
                Section("ranks", title, {}, as_svg(rank_diagram.draw(self.ranks)), " ".join(said))
            )
        if self.factorials:
            title = f"Effects of crossed settings on {self.metric}"
            picture = as_svg(effects.draw(self.factorials, self.metric))
            found.append(Section("effects", title, {}, picture, effects.CAPTION))
        return found
