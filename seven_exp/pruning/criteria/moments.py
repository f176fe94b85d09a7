"""The inputs' second moments: what solvers of a layer's least-squares problem read."""

from collections.abc import Iterator

import torch
from torch import Tensor

from seven_exp.pruning.bounds import above_zero, one_or_more
from seven_exp.pruning.criteria.score import Tensors
from seven_exp.pruning.criteria.solver import Order, Solver, Sums

SPACE = {"dampening": "tag(log,interval(1e-4,1.0))"}
"""The search space of these solvers."""


class MomentSolver(Solver):
    """Prunes to minimise ||(W' - W) X||^2, which depends on the inputs by H = (2/n) X X^T alone.

    H is the sum over the n inputs of the layer, plus a fraction of its mean diagonal. Convolutions
    count as linear maps of patches.

    Args:
        dampening: Fraction of the mean diagonal that is added to H.
        order: See `Solver`.
    """

    def __init__(self, *, dampening: float = 0.01, order: Order = "blocks") -> None:
        super().__init__(order=order)
        above_zero(dampening=dampening)
        self.dampening = dampening

    def init(self, weight: Tensor) -> Sums:
        """One sum per pair of inputs."""
        groups, _, inputs = weight.shape
        return {"moments": weight.new_zeros(groups, inputs, inputs)}

    def see(self, sums: Sums, inputs: Tensors) -> None:
        """Sum x x^T."""
        for moment, x in zip(sums["moments"], inputs, strict=True):
            moment.addmm_(x.T, x)

    def hessians(self, sums: Sums) -> Tensor:
        """The dampened H of each group: (groups, inputs, inputs); 0 for unused inputs."""
        hessians = 2 / sums["uses"].clamp(min=1)[:, None, None] * sums["moments"]
        for hessian in hessians:
            _dampen(hessian, self.dampening)
        return hessians


class ColumnSolver(MomentSolver):
    """A solver that goes through the columns block by block.

    Args:
        block: Columns per block.
        dampening: Fraction of the mean diagonal that is added to H.
        order: See `Solver`.
    """

    def __init__(
        self, *, block: int = 128, dampening: float = 0.01, order: Order = "blocks"
    ) -> None:
        super().__init__(dampening=dampening, order=order)
        one_or_more(block=block)
        self.block = block

    def column_blocks(self, columns: int, width: int) -> Iterator[slice]:
        """The blocks of so many columns; each but the last is a multiple of ``width``."""
        block = width * max(1, self.block // width)
        for start in range(0, columns, block):
            yield slice(start, min(start + block, columns))


def unused(hessians: Tensor) -> Tensor:
    """Bool (groups, inputs): the inputs that are always zero."""
    return hessians.diagonal(dim1=1, dim2=2) == 0


def factors(hessians: Tensor) -> Tensor:
    """Upper U with U^T U = H^-1 for each group, in H's place; of the identity for unused inputs.

    In the sums' own precision: their rounding has moved U as much as that of the factors does.

    Raises:
        torch.linalg.LinAlgError: H is singular to this precision.
    """
    # LAPACK reads columns, so it can work in place if they are contiguous; H is symmetric.
    wholes = hessians.contiguous().mT
    wholes.diagonal(dim1=1, dim2=2).add_(unused(hessians))
    for whole in wholes:
        torch.linalg.cholesky(whole, out=whole)
        torch.cholesky_inverse(whole, out=whole)
        torch.linalg.cholesky(whole, upper=True, out=whole)
    return wholes


def _dampen(hessian: Tensor, dampening: float) -> None:
    """Add a fraction of the mean diagonal of H over the inputs in use."""
    diagonal = hessian.diagonal()
    used = diagonal != 0
    diagonal[used] += dampening * diagonal.sum() / max(1, int(used.sum()))
