"""Straight-through magnitude: dense weights are trained through their own mask."""

from seven_exp.pruning.criteria.magnitude import Magnitude
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.registry import register
from seven_exp.pruning.regrowth import StraightThrough


@register("straight_through", when="during", schedule="cubic")
def straight_through() -> Ranking:
    """Keeps the highest |w| of dense weights, which are trained by the pruned model's gradient.

    The forward and backward passes use w * mask; the update goes to w, whatever its mask (Lin et
    al., "Dynamic model pruning with feedback", arXiv 2006.07253, eq. 6). A wrongly pruned weight
    therefore grows until it returns. The dense weights are stored outside the model.
    """
    return Ranking(Magnitude(), regrowth=StraightThrough)
