"""Wanda++: Wanda with gradients that are taken within each block."""

import torch
from torch import Tensor

from seven_exp.pruning.bounds import zero_or_more
from seven_exp.pruning.criteria.solver import RegionalSolver, Sums
from seven_exp.pruning.criteria.wanda import Wanda
from seven_exp.pruning.registry import register

_SPACE = {"alpha": "tag(log,interval(1.0,1e4))"}


@register("wanda_pp", when="after", schedule="one_shot", scope="per_row", space=_SPACE)
class WandaPp(Wanda, RegionalSolver):
    """|W_ij| (||X_j||_2 + alpha G_ij) within each row, G_ij = sqrt(E[(d||f(X)||_2 / dW_ij)^2]).

    f is the block, X its inputs behind the pruned blocks, and E the mean over the batches (Yang et
    al., "Wanda++: pruning large language models via regional gradients", arXiv 2503.04992, the
    regional gradient score). The authors' batches are of one sequence. Their regional optimization,
    which trains the weights of each pruned block, is not part of it.

    Args:
        alpha: Weight of the gradients.
    """

    def __init__(self, *, alpha: float = 100.0) -> None:
        super().__init__()
        zero_or_more(alpha=alpha)
        self.alpha = alpha

    def init(self, weight: Tensor) -> Sums:
        """One sum per input, one per weight, and the number of batches."""
        zeros = {"gradients": weight.new_zeros(weight.shape), "batches": weight.new_zeros(1)}
        return {**super().init(weight), **zeros}

    def see_gradient(self, sums: Sums, gradient: Tensor) -> None:
        """Sum G_ij^2."""
        sums["gradients"] += gradient.square()
        sums["batches"] += 1

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """|W_ij| (||X_j|| + alpha G_ij)."""
        batches = sums["batches"].clamp(min=torch.finfo(weight.dtype).tiny)
        regional = (sums["gradients"] / batches).sqrt()
        return super().score(sums, weight) + self.alpha * weight.abs() * regional
