"""How differences are tested: the test, the family of the correction, and what was planned."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from seven_exp.compare.records import Record
from seven_exp.compare.statistics import Differ, paired_difference

Family = Literal["sparsity", "table"]
"""Whose p values are corrected together: those of one sparsity of a task, or all of a table."""


@dataclass(frozen=True)
class Inference:
    """The options of all tests of a comparison.

    Attributes:
        differ: How two methods are compared.
        family: Whose p values Holm's correction covers together.
        contrasts: The planned comparisons, "METHOD:METHOD".
        margin: The largest difference without importance, in points for a metric in percent and
            otherwise in the metric's unit; None: equivalence is not tested.
        stated: Where the runs' configs state contrasts and margin, as part of a sentence; "" if
            they were named when comparing.
        factors: Crossed settings whose effects are estimated.
    """

    differ: Differ = paired_difference
    family: Family = "sparsity"
    contrasts: tuple[str, ...] = ()
    margin: float | None = None
    stated: str = ""
    factors: tuple[str, ...] = ()


PAIRED = Inference()
"""Paired by seed, corrected at each sparsity, nothing planned."""


def as_stated(
    records: Sequence[Record], inference: Inference, metric: str
) -> tuple[Inference, list[str]]:
    """Complete contrasts and margin by those that the runs' configs state.

    Args:
        records: Any runs; their ``compare`` section was written before they started.
        inference: Its contrasts, if there are any, take precedence.
        metric: The metric to compare; a stated margin holds for the runs' headline alone.

    Returns:
        The options, and notes on what could not be used.

    Raises:
        ValueError: There is a margin, but no contrast.
    """
    if inference.contrasts:
        return inference, []
    plans = Counter(plan for record in records if (plan := _plan(record.values)) is not None)
    if len(plans) > 1:
        return inference, [f"planned contrasts (the runs state {len(plans)}; --contrast takes one)"]
    if not plans:
        if inference.margin is not None:
            raise ValueError("--margin works only with --contrast, or with compare.contrasts")
        return inference, []
    ((contrasts, margin), n), *_ = plans.items()
    where = "of all runs" if n == len(records) else f"of {n} of {len(records)} runs"
    stated = f"stated in the config {where}, before they started"
    if all(record.values.get("metric", "accuracy") != metric for record in records):
        margin = None
    if inference.margin is not None and inference.margin != margin:
        stated += "; the margin was chosen when comparing"
        margin = inference.margin
    return replace(inference, contrasts=contrasts, margin=margin, stated=stated), []


def _plan(values: Mapping[str, Any]) -> tuple[tuple[str, ...], float | None] | None:
    """Contrasts and margin of a record's config; None if it states no contrast."""
    try:
        section = values["config"]["compare"]
        contrasts = tuple(map(str, section["contrasts"]))
        margin = section["margin"]
        return (contrasts, None if margin is None else float(margin)) if contrasts else None
    except (KeyError, TypeError, ValueError):
        return None
