"""Dense: no pruning, the reference for all pruners."""

from seven_exp.pruning.criteria.magnitude import Magnitude
from seven_exp.pruning.criteria.score import Score
from seven_exp.pruning.registry import register


@register("dense", when="after", schedule="one_shot", prunes=False)
def dense() -> Score:
    """Keeps every weight, whatever the sparsity; the score is irrelevant."""
    return Magnitude()
