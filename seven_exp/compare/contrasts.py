"""Planned contrasts: named pairs of methods, with tests of difference and of equivalence."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from seven_exp.compare.inference import Inference
from seven_exp.compare.metrics import in_percent, smaller_is_better
from seven_exp.compare.power import MOST_SEEDS, resolved, seeds_to_resolve
from seven_exp.compare.records import is_of_pruning
from seven_exp.compare.statistics import SIGNIFICANT, Difference, equivalence, holm
from seven_exp.compare.summary import Row, largest_step, lost_words, reference_of, spans
from seven_exp.messages import nearest

POINTS = 0.5
"""The difference to resolve if there is no margin, for metrics in percent."""

Verdict = Literal[
    "better", "worse", "equivalent", "slightly better", "slightly worse", "undecided", "untested"
]
"""What was shown at 5%, after the correction; "slightly" means by less than the margin."""


@dataclass(frozen=True)
class Planned:
    """One planned comparison at one sparsity of one task.

    Attributes:
        task: (model, dataset).
        sparsity: Target.
        names: The two methods: those of the rows, or as planned.
        ours: The first method's row; None if it has none here.
        theirs: The second method's; None if it has none here.
        difference: Ours minus theirs; None if they have no seed in common.
        family: Number of planned comparisons that the correction covers.
        p: Of the difference, corrected; None without a test.
        p_equivalence: Of equivalence within the margin, corrected; None without a margin or a test.
        resolves: The smallest true difference that these seeds find with 80% probability.
        seeds: How many seeds would find `to_resolve` as often; None if unknown, or too many.
        to_resolve: The margin, or for a metric in percent without one half a point.
        margin: The largest difference without importance, in the metric's unit; None: none.
        verdict: What was shown.
        reason: Why there is no test; "" if there is one.
        cautions: What else differs between the two, or is missing.
    """

    task: tuple[str, str]
    sparsity: float
    names: tuple[str, str]
    ours: Row | None
    theirs: Row | None
    difference: Difference | None = None
    family: int = 1
    p: float | None = None
    p_equivalence: float | None = None
    resolves: float | None = None
    seeds: int | None = None
    to_resolve: float | None = None
    margin: float | None = None
    verdict: Verdict = "untested"
    reason: str = ""
    cautions: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[tuple[str, str], float]:
        """(task, sparsity), as of its rows."""
        return self.task, self.sparsity

    @property
    def rows(self) -> list[Row]:
        """Those that there are."""
        return [row for row in (self.ours, self.theirs) if row is not None]

    @property
    def incomplete(self) -> bool:
        """Whether seeds have no result, which are not missing at random."""
        return any(row.lost for row in self.rows)


def planned(
    rows: Sequence[Row], metric: str, inference: Inference
) -> tuple[list[Planned], list[str]]:
    """The planned contrasts in the order of plan, task and sparsity; and methods without results.

    A comparison that can't be tested counts in its family with a p value of 1. So do those of a
    stated plan whose method has no result at all; they are no contrasts here, but notes.

    Raises:
        ValueError: A contrast that was named when comparing is of no method of the table.
    """
    names = {name for row in rows for name in (row.method, row.pruner)}
    margin = None if inference.margin is None else inference.margin * _unit(metric)
    contrasts: list[Planned] = []
    notes: list[str] = []
    seen: dict[frozenset[str], str] = {}
    for text in inference.contrasts:
        try:
            ours, theirs = parse(text, names)
        except ValueError as error:
            if not inference.stated:
                raise
            notes.append(f"planned {error}")  # a sweep may be cut down to some of its methods
            continue
        if (same := seen.setdefault(frozenset((ours, theirs)), text)) != text:
            raise ValueError(f"contrast '{text}': '{same}' has the same two methods")
        contrasts += _at_all_places(rows, ours, theirs, inference)
    contrasts = [replace(contrast, margin=margin) for contrast in contrasts]
    families: dict[object, list[int]] = defaultdict(list)
    for i, contrast in enumerate(contrasts):
        families[contrast.place if inference.family == "sparsity" else None].append(i)
    for family in families.values():
        own = [contrasts[i] for i in family]
        lacking = len(notes) * len({contrast.place for contrast in own})
        equal = [_equivalence(c.difference, margin) for c in own]
        ps = _corrected([None if c.difference is None else c.difference.p for c in own], lacking)
        equals = _corrected(equal, lacking)
        for i, p, p_equal in zip(family, ps, equals, strict=True):
            size = len(own) + lacking
            corrected = replace(contrasts[i], family=size, p=p, p_equivalence=p_equal)
            contrasts[i] = _judged(_with_power(corrected, metric), metric)
    return contrasts, notes


def parse(text: str, names: Collection[str]) -> tuple[str, str]:
    """The two methods of "METHOD:METHOD"; a method's name may hold colons too.

    Raises:
        ValueError: It has no colon, or a method is unknown.
    """
    sides = [(text[: m.start()].strip(), text[m.end() :].strip()) for m in re.finditer(":", text)]
    if not sides:
        raise ValueError(f"contrast '{text}': write METHOD:METHOD, such as seven_dyn:magnitude")
    known = [pair for pair in sides if set(pair) <= set(names)]
    if known:
        if len(set(known[0])) == 1:
            raise ValueError(f"contrast '{text}': name two different methods")
        return known[0]
    unknown = next(name for name in sides[0] if name not in names)
    raise ValueError(f"contrast '{text}': no results of '{unknown}': {nearest(unknown, names)}")


def split(texts: Iterable[str]) -> tuple[str, ...]:
    """The contrasts of command-line arguments, which may hold several with commas between."""
    parts = (part.strip() for text in texts for part in re.split(r",(?![^\[]*\])", text))
    return tuple(dict.fromkeys(filter(None, parts)))


def _at_all_places(
    rows: Sequence[Row], ours: str, theirs: str, inference: Inference
) -> Iterator[Planned]:
    """The contrast of two methods wherever one of them has a result."""
    mine = [row for row in rows if ours in (row.method, row.pruner)]
    others = [row for row in rows if theirs in (row.method, row.pruner)]
    # A dense run applies to every sparsity.
    pruned = any(row.sparsity > 0 for row in others)
    places = {row.place for row in mine} | {row.place for row in others if row.sparsity > 0}
    for task, sparsity in sorted(places):
        here = [row for row in mine if row.place == (task, sparsity)]
        if not here:
            yield Planned(
                task, sparsity, (ours, theirs), None, None, reason=f"{ours} has no result here"
            )
        there = task, sparsity if pruned else 0.0
        rivals = [row for row in others if row.place == there]
        for row in sorted(here, key=lambda row: row.method):
            yield _tested(row, reference_of(row, rivals), theirs, inference)


def _tested(ours: Row, theirs: Row | None, name: str, inference: Inference) -> Planned:
    if theirs is None:
        why = f"no row of {name}, or no single one, is here"
        return Planned(*ours.place, (ours.method, name), ours, None, reason=why)
    difference = inference.differ(ours.by_seed, theirs.by_seed, largest_step((ours, theirs)))
    return Planned(
        *ours.place, (ours.method, theirs.method), ours, theirs, difference,
        reason=_reason(ours, theirs, difference),
        cautions=tuple(_cautions(ours, theirs, difference)),
    )  # fmt: skip


def _reason(ours: Row, theirs: Row, difference: Difference | None) -> str:
    """Why two rows allow no test; "" if they do."""
    if difference is None:
        seeds = f"{spans(ours.by_seed)} against {spans(theirs.by_seed)}"
        return f"no common seed ({seeds}); --unpaired compares the means"
    if difference.estimate.half is None:
        return "one seed has no spread, so there is no test"
    if difference.error is None:
        same = "identical" if abs(difference.estimate.mean) < 1e-12 else "the same difference"
        return f"{same} on all {difference.estimate.n} seeds: without a spread there is no test"
    return ""


def _cautions(ours: Row, theirs: Row, difference: Difference | None) -> Iterator[str]:
    for row in (ours, theirs):
        if row.lost:
            yield f"{row.method}: {lost_words(row)}, so its mean covers only those that finished"
    most = max(len(ours.by_seed), len(theirs.by_seed))
    if difference is not None and difference.test == "paired" and difference.estimate.n < most:
        yield f"only {difference.estimate.n} of {most} seeds are common"
    for key in sorted(ours.settings.keys() & theirs.settings.keys()):
        mine, other = ours.settings[key], theirs.settings[key]
        if mine != other and not is_of_pruning(key):
            yield f"{key} differs ({mine} against {other}): the budgets or settings are not equal"
    if theirs.sparsity > 0 and abs(ours.kept - theirs.kept) > 0.01 * max(ours.kept, theirs.kept):
        yield f"kept weights differ ({ours.kept:,.0f} against {theirs.kept:,.0f})"


def _corrected(ps: Sequence[float | None], lacking: int) -> list[float | None]:
    """Holm's correction, in which a missing p value counts as 1 and stays missing.

    Args:
        ps: Of the tests.
        lacking: Number of further tests without a p value.
    """
    adjusted = holm([1.0 if p is None else p for p in ps] + [1.0] * lacking)
    return [None if p is None else q for p, q in zip(ps, adjusted, strict=False)]


def _equivalence(difference: Difference | None, margin: float | None) -> float | None:
    return None if difference is None or margin is None else equivalence(difference, margin)


def _with_power(contrast: Planned, metric: str) -> Planned:
    """Add what the seeds resolve, at the level of the correction's first step."""
    difference = contrast.difference
    target = POINTS / 100 if in_percent(metric) else None
    target = target if contrast.margin is None else contrast.margin
    if difference is None or difference.spread is None:
        return replace(contrast, to_resolve=target)
    alpha = SIGNIFICANT / contrast.family
    step = largest_step(contrast.rows)
    finds = resolved(difference.spread, difference.estimate.n, alpha, step)
    needed = None if target is None else seeds_to_resolve(target, difference.spread, alpha, step)
    return replace(contrast, to_resolve=target, resolves=finds, seeds=needed)


def _judged(contrast: Planned, metric: str) -> Planned:
    if contrast.p is None or contrast.difference is None or contrast.reason:
        return contrast
    equal = contrast.p_equivalence is not None and contrast.p_equivalence < SIGNIFICANT
    verdict: Verdict = "undecided"
    if contrast.incomplete:
        pass
    elif contrast.p < SIGNIFICANT:
        up = (contrast.difference.estimate.mean > 0) != smaller_is_better(metric)
        if equal:
            verdict = "slightly better" if up else "slightly worse"
        else:
            verdict = "better" if up else "worse"
    elif equal:
        verdict = "equivalent"
    return replace(contrast, verdict=verdict)


def sentence(contrast: Planned, metric: str) -> str:
    """What the contrast shows, in words."""
    words = _conclusion(contrast, metric)
    return f"{words}. {' '.join(f'Caution: {one}.' for one in contrast.cautions)}".strip()


def _conclusion(contrast: Planned, metric: str) -> str:
    if contrast.reason:
        return f"not tested: {contrast.reason}"
    assert contrast.difference is not None
    found, unit = contrast.difference.estimate, _unit(metric)
    margin = contrast.margin
    within = "" if margin is None else _amount(f"{margin / unit:g}", metric)
    if contrast.verdict == "equivalent":
        return f"equivalent within {within} at 95%: {p_words(contrast.p_equivalence)}"
    if contrast.verdict == "undecided":
        if contrast.incomplete:
            return "undecided: seeds without a result are not missing by chance"
        words = f"no difference shown ({p_words(contrast.p)})"
        if margin is None:
            return f"{words}, which does not show that there is none"
        return f"{words}, nor equivalence within {within} ({p_words(contrast.p_equivalence)})"
    assert found.half is not None
    mean, half = abs(found.mean) / unit, found.half / unit
    interval = f"95% interval {mean - half:.3g} to {mean + half:.3g}"
    size = f"by {_amount(f'{mean:.3g}', metric)} ({interval})"
    words = f"{contrast.verdict.removeprefix('slightly ')} {size}: {p_words(contrast.p)}"
    if contrast.verdict.startswith("slightly"):
        words += f"; but by less than {within} ({p_words(contrast.p_equivalence)})"
    return words


def power_sentence(contrast: Planned, metric: str) -> str:
    """What these seeds could resolve, and how many would resolve more; "" if unknown."""
    if contrast.resolves is None or contrast.difference is None:
        return ""
    unit, n = _unit(metric), contrast.difference.estimate.n
    words = (
        f"{n} seeds find a true difference of "
        f"{_amount(f'{contrast.resolves / unit:.2g}', metric)} in 4 of 5 cases"
    )
    if contrast.to_resolve is None:
        return words
    aim = _amount(f"{contrast.to_resolve / unit:g}", metric)
    if contrast.seeds is None:
        # The interval never gets narrower than one test example.
        if contrast.to_resolve < 2 * (step := largest_step(contrast.rows)):
            example = _amount(f"{step / unit:.2g}", metric)
            return f"{words}; {aim} can't be resolved, one test example is {example}"
        return f"{words}; {aim} takes more than {MOST_SEEDS:,} seeds"
    return f"{words}; {aim} {'takes' if contrast.seeds > n else 'took'} {contrast.seeds:,} seeds"


def p_words(p: float | None) -> str:
    """As a paper prints it: "p = .003", "p < .001"."""
    if p is None:
        return "p unknown"
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def _unit(metric: str) -> float:
    return 0.01 if in_percent(metric) else 1.0


def _amount(number: str, metric: str) -> str:
    """A number with its unit."""
    if not in_percent(metric):
        return number
    return f"{number} point" if number == "1" else f"{number} points"
