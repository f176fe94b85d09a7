"""A method chooses masks: by ranking weights, or by solving each layer for its inputs."""

from dataclasses import dataclass, field

from seven_exp.pruning.criteria.score import GradientScore, ModelScore, Score
from seven_exp.pruning.criteria.solver import Solver
from seven_exp.pruning.regrowth import Regrowth, StayGone
from seven_exp.pruning.rules import DropAndGrow, Rule, TopK


@dataclass(frozen=True)
class Ranking:
    """Chooses masks by ranking weights.

    Attributes:
        score: Assigns each weight a score.
        rule: Turns scores into ranks; the next masks keep the highest ranks.
        regrowth: Whether a pruned weight may return, and with which value.
    """

    score: Score | ModelScore
    rule: Rule = field(default_factory=TopK)
    regrowth: type[Regrowth] = StayGone


Method = Ranking | Solver


def needs_batches(method: Method) -> bool:
    """Whether it reads gradients or inputs, and so needs batches outside training."""
    return needs_model(method) or isinstance(method.score, GradientScore)


def needs_model(method: Method) -> bool:
    """Whether it runs the model itself, so that training steps can't provide its evidence."""
    return isinstance(method, Solver) or isinstance(method.score, ModelScore)


def starts_sparse(method: Method) -> bool:
    """Whether it chooses its first masks before the first step."""
    return isinstance(method, Ranking) and isinstance(method.rule, DropAndGrow)


def regrows(method: Method) -> type[Regrowth]:
    """How pruned weights return."""
    return method.regrowth if isinstance(method, Ranking) else StayGone
