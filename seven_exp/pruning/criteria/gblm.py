"""GBLM: weights times the norms of their inputs and of their gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import GradientScore, State
from seven_exp.pruning.criteria.solver import GradientSolver, Order, Sums
from seven_exp.pruning.criteria.wanda import Wanda
from seven_exp.pruning.registry import register


class GradientNorm(GradientScore):
    """||g_ij||_2 over the batches."""

    def init(self, weights: Sequence[Tensor]) -> State:
        """The sum of squares so far: 0."""
        return State.zeros(weights, "squares")

    def update(self, state: State, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Add the batch's g^2."""
        torch._foreach_addcmul_(state["squares"], list(grads), list(grads))

    def score(self, state: State, weights: Sequence[Tensor]) -> list[Tensor]:
        """The norm."""
        return list(torch._foreach_sqrt(state["squares"]))


@register(
    "gblm",
    when="after",
    schedule="one_shot",
    scope="per_row",
    space={"alpha": "tag(log,interval(1.0,1e4))"},
)
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
        if alpha < 0:
            raise ValueError(f"alpha is {alpha}: choose 0 or more")
        self.alpha = alpha

    def gradients(self) -> GradientScore:
        """||G_ij||."""
        return GradientNorm()

    def init(self, weight: Tensor) -> Sums:
        """One sum per input, and the number of batches."""
        return {**super().init(weight), "batches": weight.new_zeros(1)}

    def see(self, sums: Sums, inputs: Sequence[Tensor]) -> None:
        """Sum x_j^2."""
        super().see(sums, inputs)
        sums["batches"] += 1

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """|W_ij| (||X_j|| + alpha ||G_ij||)."""
        norms = (sums["squares"] / sums["batches"]).sqrt().unsqueeze(1)
        return weight.abs() * (norms + self.alpha * sums["gradients"])
