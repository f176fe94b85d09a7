"""Dense: no pruning at all, the ceiling to compare with."""

from seven_exp.pruning.criteria.magnitude import Magnitude
from seven_exp.pruning.criteria.score import Score
from seven_exp.pruning.registry import register


@register("dense", when="after", schedule="one_shot", prunes=False)
def dense() -> Score:
    """Keeps everything, whatever sparsity is asked for; so any score will do."""
    return Magnitude()
