"""RIA: relative importance of weights times the norms of their input activations."""

from torch import Tensor

from seven_exp.pruning.bounds import zero_or_more
from seven_exp.pruning.criteria.solver import Order, Sums
from seven_exp.pruning.criteria.wanda import Wanda
from seven_exp.pruning.registry import register

_SPACE = {"power": "interval(0.0,1.0)"}


@register("ria", when="after", schedule="one_shot", scope="per_layer", space=_SPACE)
class Ria(Wanda):
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_j||_2^a.

    A weight counts relative to all weights of its input and of its output (Zhang et al.,
    "Plug-and-play: an efficient post-training pruning method for large language models", ICLR 2024,
    eqs. 3 and 4). The paper's permutation of channels before N:M is not part of it.

    Args:
        power: a, the exponent of the inputs' norms.
        order: See `Solver`.
    """

    def __init__(self, *, power: float = 0.5, order: Order = "blocks") -> None:
        super().__init__(order=order)
        zero_or_more(power=power)
        self.power = power

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """RI_ij ||X_j||^a; 0 for weights of 0."""
        w = weight.abs().to(sums["squares"].dtype)
        relative = sum(w / w.sum(dim, keepdim=True).clamp(min=1e-38) for dim in (1, 2))
        norms = sums["squares"].sqrt().unsqueeze(1)
        return relative * norms**self.power
