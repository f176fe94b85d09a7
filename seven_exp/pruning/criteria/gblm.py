"""GBLM: weights times the norms of their inputs and of their gradients."""

from torch import Tensor

from seven_exp.pruning.bounds import zero_or_more
from seven_exp.pruning.criteria.gradient import GradientNorm
from seven_exp.pruning.criteria.score import GradientScore, Tensors
from seven_exp.pruning.criteria.solver import GradientSolver, Order, Sums
from seven_exp.pruning.criteria.wanda import Wanda
from seven_exp.pruning.registry import register

_SPACE = {"alpha": "tag(log,interval(1.0,1e4))"}


@register("gblm", when="after", schedule="one_shot", scope="per_row", space=_SPACE)
class Gblm(Wanda, GradientSolver):
    """|W_ij| ||X_j||_2 + alpha |W_ij| ||G_ij||_2 within each row.

    G_ij are the gradients of the batches in the dense model, X_j the inputs behind the pruned
    blocks, per batch (Das et al., "Beyond size: how gradients shape pruning decisions in large
    language models", arXiv 2311.04902, eq. 8 with p = 2). The authors' batches are of one sequence.

    Args:
        alpha: Weight of the gradients.
        order: See `Solver`.
    """

    def __init__(self, *, alpha: float = 100.0, order: Order = "blocks") -> None:
        super().__init__(order=order)
        zero_or_more(alpha=alpha)
        self.alpha = alpha

    def gradients(self) -> GradientScore:
        """||G_ij||."""
        return GradientNorm()

    def init(self, weight: Tensor) -> Sums:
        """One sum per input, and the number of batches."""
        return {**super().init(weight), "batches": weight.new_zeros(1)}

    def see(self, sums: Sums, inputs: Tensors) -> None:
        """Sum x_j^2."""
        super().see(sums, inputs)
        sums["batches"] += 1

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """|W_ij| (||X_j|| + alpha ||G_ij||)."""
        norms = (sums["squares"] / sums["batches"]).sqrt().unsqueeze(1)
        return weight.abs() * (norms + self.alpha * sums["gradients"])
