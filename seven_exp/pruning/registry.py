"""Name -> pruner. A named pruner is a method with a good time and schedule for it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeVar, get_args

from seven_exp.messages import nearest
from seven_exp.pruning.criteria.score import ModelScore, Score
from seven_exp.pruning.criteria.solver import Solver
from seven_exp.pruning.method import Method, Ranking, described
from seven_exp.registry import Registry

When = Literal["before", "during", "after"]
"""Relative to training (or fine-tuning): on batches before it, during its steps, or after it."""

Made = Score | ModelScore | Method
"""A score alone is short for a `Ranking` that keeps the highest scores, without regrowth."""


@dataclass(frozen=True)
class PrunerSpec:
    """What a name stands for.

    Attributes:
        make: Makes the method; its keywords are the hyper-parameters.
        when: When the masks are chosen.
        schedule: Name of the default curve.
        rounds: Default number of mask updates of a "before" or "after" pruner.
        prunes: False for the dense reference.
        scope: Name of the default allocation.
        space: Keyword -> the values that tuning searches, in the syntax of Hydra's sweeps.
    """

    make: Callable[..., Made]
    when: When
    schedule: str
    rounds: int
    prunes: bool
    scope: str
    space: Mapping[str, str]

    @property
    def criterion(self) -> str:
        """The name that the pruners of one criterion share, such as "seven"."""
        return self.make.__name__.replace("_", "").lower()


PRUNERS: Registry[PrunerSpec] = Registry("pruner")

_KEYWORD = inspect.Parameter.KEYWORD_ONLY

M = TypeVar("M", bound=Callable[..., Made])


def register(
    name: str,
    *,
    when: When,
    schedule: str = "cubic",
    rounds: int = 1,
    prunes: bool = True,
    scope: str = "global",
    space: Mapping[str, str] | None = None,
) -> Callable[[M], M]:
    """Decorator that registers a method under ``name``. One method may have several names.

    It decorates the class of a score, which then ranks weights without regrowth; the class of a
    solver; or a function that returns a `Ranking` of score, rule and regrowth.

    Args:
        name: What users write: ``pruner=NAME``, ``create_pruner(NAME, ...)``.
        when: "before", "during" or "after" training.
        schedule: Name of the default curve.
        rounds: Default number of mask updates outside training.
        prunes: Whether it removes any weights.
        scope: Name of the default allocation.
        space: Hyper-parameter -> the values that ``seven-exp tune`` searches, such as
            "interval(0.5,0.95)", "tag(log,interval(1e-4,1e-2))" or "1,2,4".

    Raises:
        ValueError: The name is taken, or ``when`` is invalid.
    """
    check_when(when)

    def add(make: M) -> M:
        PRUNERS.add(name, PrunerSpec(make, when, schedule, rounds, prunes, scope, space or {}))
        return make

    return add


def build_method(name: str, hyperparameters: Mapping[str, Any]) -> Method:
    """Make the method of a registered name.

    Raises:
        ValueError: The pruner is unknown, a hyper-parameter is unknown or missing, or what is
            registered makes no method.
    """
    make = PRUNERS[name].make
    known = inspect.signature(make).parameters
    for key, value in hyperparameters.items():
        if key not in known:
            hint = nearest(key, known) if known else "it takes none"
            raise ValueError(f"{name} has no hyper-parameter '{key}': {hint}")
        usual = known[key].default
        if type(usual) in (int, float) and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ValueError(f"{key} is {value!r}: choose a number, such as {usual}")
    for key, parameter in known.items():
        required = parameter.default is parameter.empty and parameter.kind is _KEYWORD
        if required and key not in hyperparameters:
            raise ValueError(f"{name} needs the hyper-parameter '{key}', which has no default")
    if inspect.isabstract(make):
        lacking = ", ".join(sorted(getattr(make, "__abstractmethods__", ())))
        raise ValueError(f"{name} can't be made: {make.__name__} does not define {lacking}")
    made = make(**hyperparameters)
    if isinstance(made, Score | ModelScore):
        return Ranking(made)
    if not isinstance(made, Ranking | Solver):
        raise ValueError(
            f"what is registered as {name} makes {described(made)}: return a Ranking, or a score "
            "or a solver"
        )
    return made


def check_when(when: str) -> None:
    """Raise ValueError unless it is "before", "during" or "after"."""
    if when not in get_args(When):
        raise ValueError(f"unknown when '{when}': {nearest(when, get_args(When))}")
