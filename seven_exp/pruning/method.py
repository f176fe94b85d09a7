"""A method chooses masks: by ranking weights, or by solving each layer for its inputs."""

from dataclasses import dataclass, field

from seven_exp.pruning.criteria.score import Elementwise, GradientScore, ModelScore, Score
from seven_exp.pruning.criteria.solver import GradientSolver, Solver
from seven_exp.pruning.patterns import Pattern, Units
from seven_exp.pruning.regrowth import FromZero, Moved, Regrowth, StayGone
from seven_exp.pruning.rules import DropAndGrow, Rule, TopK


@dataclass(frozen=True)
class Ranking:
    """Chooses masks by ranking weights.

    Attributes:
        score: Assigns each weight a score.
        rule: Turns scores into ranks; the next masks keep the highest ranks.
        regrowth: Whether a pruned weight may return, and with which value.

    Raises:
        ValueError: One of them is not of its kind.
    """

    score: Score | ModelScore
    rule: Rule = field(default_factory=TopK)
    regrowth: type[Regrowth] = StayGone

    def __post_init__(self) -> None:
        if not isinstance(self.score, Score | ModelScore):
            raise ValueError(f"a Ranking's score is {described(self.score)}: give a score")
        if not isinstance(self.rule, Rule):
            raise ValueError(f"a Ranking's rule is {described(self.rule)}: give a rule, as TopK()")
        if not (isinstance(self.regrowth, type) and issubclass(self.regrowth, Regrowth)):
            raise ValueError(
                f"a Ranking's regrowth is {described(self.regrowth)}: give a class, as Remembered"
            )


def described(thing: object) -> str:
    """What something is, in words for an error message."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    return "None" if thing is None else f"a value of type {type(thing).__name__}"


Method = Ranking | Solver


def check_pattern(method: Method, pattern: Pattern) -> None:
    """Raise ValueError, with the reason, if the method does not fit the pattern."""
    chooser = method if isinstance(method, Solver) else method.score
    if isinstance(chooser, Solver | ModelScore):
        chooser.check(pattern)
    spans = isinstance(pattern, Units) and pattern.spans_weights
    if spans and issubclass(regrows(method), FromZero):
        raise ValueError(
            f"weights return from zero, but a unit of pattern '{pattern}' gets no gradient while "
            "all of it is zero: choose pattern rows or unstructured, or a pruner such as movement"
        )


SHARDED_SCOPES = ("global", "per_layer", "erk")
"""Scopes that need no more than the scores above a threshold, wherever they are."""


def check_sharded(name: str, method: Method, scope: str, pattern: Pattern) -> None:
    """Raise ValueError, with the reason, unless ranks that each hold some rows can choose masks.

    Args:
        name: Of the pruner.
        method: What it does.
        scope: Name of the allocation.
        pattern: Which sets of weights may be pruned together.
    """
    if isinstance(method, Solver):
        fault = f"{name} needs whole weights"
    elif type(method.rule) is not TopK:
        fault = f"{name} compares the weights of a layer"
    elif method.regrowth not in (StayGone, Moved):
        fault = f"{name} remembers pruned weights"
    elif not isinstance(method.score, Elementwise):
        fault = f"{name} needs whole weights"
    elif scope not in SHARDED_SCOPES:
        raise ValueError(
            f"scope '{scope}' needs whole weights, which sharding splits by rows: choose "
            f"{', '.join(SHARDED_SCOPES[:-1])} or {SHARDED_SCOPES[-1]}"
        )
    elif type(pattern) is not Pattern:
        raise ValueError(
            f"pattern '{pattern}' needs whole weights, which sharding splits by rows: choose "
            "unstructured"
        )
    else:
        return
    raise ValueError(
        f"{fault}, which sharding splits by rows: choose seven_dyn, magnitude or another pruner "
        "whose score of a weight depends on that weight alone"
    )


def needs_batches(method: Method) -> bool:
    """Whether it reads gradients or inputs, and so needs batches outside training."""
    return needs_model(method) or isinstance(method.score, GradientScore)


def needs_model(method: Method) -> bool:
    """Whether it runs the model itself, so that training steps can't provide its evidence."""
    return isinstance(method, Solver) or isinstance(method.score, ModelScore)


def prunes_by_block(method: Method) -> bool:
    """Whether one block of a model at a time is enough, if no weights compete across blocks."""
    if isinstance(method, Solver):
        return method.order == "blocks" and not isinstance(method, GradientSolver)
    alone = isinstance(method.score, Elementwise) and not isinstance(method.score, GradientScore)
    return alone and type(method.rule) is TopK and method.regrowth is StayGone


def starts_sparse(method: Method) -> bool:
    """Whether it chooses its first masks before the first step."""
    return isinstance(method, Ranking) and isinstance(method.rule, DropAndGrow)


def regrows(method: Method) -> type[Regrowth]:
    """How pruned weights return."""
    return method.regrowth if isinstance(method, Ranking) else StayGone
