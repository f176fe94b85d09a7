"""Name -> pruner. A named pruner is a criterion with a good time and schedule for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from seven_exp.pruning.criteria.base import Criterion
from seven_exp.registry import Registry, nearest

When = Literal["before", "during", "after"]
"""Relative to training (or fine-tuning): on batches before it, step by step, or once it is done."""


@dataclass(frozen=True)
class PrunerSpec:
    """What a name stands for.

    Attributes:
        criterion: The class that scores weights; its constructor's keywords are hyper-parameters.
        when: When the masks are chosen.
        schedule: The curve used unless the user names another.
        rounds: Mask updates of a "before" or "after" pruner unless the user says otherwise.
        prunes: False for the dense reference.
        scope: How the sparsity is shared among layers unless the user says otherwise.
    """

    criterion: type[Criterion]
    when: When
    schedule: str
    rounds: int
    prunes: bool
    scope: str


PRUNERS: Registry[PrunerSpec] = Registry("pruner")

C = TypeVar("C", bound=type[Criterion])


def register(
    name: str,
    *,
    when: When,
    schedule: str = "cubic",
    rounds: int = 1,
    prunes: bool = True,
    scope: str = "global",
) -> Callable[[C], C]:
    """Class decorator: file a criterion under ``name``. One class may have several names.

    Args:
        name: What users write: ``pruner=NAME``, ``create_pruner(NAME, ...)``.
        when: "before", "during" or "after" training.
        schedule: Name of the default curve.
        rounds: Default number of mask updates outside training.
        prunes: Whether it removes anything.
        scope: Name of the default allocation.

    Raises:
        ValueError: The name is taken, or ``when`` is none of the three.
    """
    check_when(when)

    def add(criterion: C) -> C:
        PRUNERS.add(name, PrunerSpec(criterion, when, schedule, rounds, prunes, scope))
        return criterion

    return add


def check_when(when: str) -> None:
    """Raise ValueError unless it is "before", "during" or "after"."""
    if when not in get_args(When):
        raise ValueError(f"unknown when '{when}': {nearest(when, get_args(When))}")
