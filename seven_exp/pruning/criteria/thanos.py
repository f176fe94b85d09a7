"""Thanos: the optimal brain surgeon for all pruned weights of a block of columns at once."""

import math

import torch
from torch import Tensor

from seven_exp.pruning.criteria.moments import SPACE, ColumnSolver, factors
from seven_exp.pruning.criteria.solver import Budget, Sums
from seven_exp.pruning.patterns import NOfM, Units
from seven_exp.pruning.registry import register

_ELEMENTS = 2**24
"""Number of elements of the linear systems solved at a time, which bounds the working memory."""


@register("thanos", when="after", schedule="one_shot", scope="per_layer", space=SPACE)
class Thanos(ColumnSolver):
    """|W_ij| ||X_j||_2; a row's pruned weights of a block are removed jointly.

    Block by block of columns, Wanda's score of all remaining columns, with their present values,
    chooses which weights of the block go. For the weights q of a row, the row's remaining columns
    change by -w_q (H^-1_qq)^-1 H^-1_q, with H of the remaining columns, which is the least-squares
    optimum (Ilin and Richtarik, arXiv 2504.05346, eq. 12 and algorithms 1 and 2, without outlier
    rows). SparseGPT removes one column at a time. If layers compete, or whole units are pruned, the
    scores of the original weights choose all columns. For N:M the authors use blocks of 512.
    See `ColumnSolver` for the settings.
    """

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """|W_ij| ||X_j||."""
        return weight.abs() * sums["moments"].diagonal(dim1=1, dim2=2).sqrt().unsqueeze(1)

    def solve(self, sums: Sums, weight: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
        """Choose and remove block by block."""
        factor = factors(self.hessians(sums))
        w = weight.detach().to(factor.dtype, copy=True)
        mask, pattern, width = budget.mask, budget.pattern, 1
        if mask is None and isinstance(pattern, Units):
            mask = budget.best(self.score(sums, w))
        stays = torch.ones_like(budget.alive)
        if isinstance(pattern, NOfM):
            width = pattern.m * math.prod(budget.kernel)
        for own in self.column_blocks(w.shape[2], width):
            best = mask
            if best is None:
                scores = self.score(sums, w)
                done = stays[..., : own.start]
                scores[..., : own.start] = torch.where(done, 2 * scores.max() + 1, -1)
                best = budget.best(scores)
            stays[..., own] = best[..., own]
            u = factor[:, own, own.start :]
            # The rows of the inverse of the remaining H that belong to this block.
            inverse = u[:, :, : own.stop - own.start].mT @ u
            for group, rows in enumerate(inverse):
                _remove(w[group, :, own.start :], ~stays[group, :, own], rows)
        return stays, w


def _remove(w: Tensor, goes: Tensor, inverse: Tensor) -> None:
    """Remove some of the first weights of each row, and move the others to the optimum.

    Args:
        w: (rows, columns), changed in place; what goes is left near zero.
        goes: Bool (rows, block).
        inverse: (block, columns), the first rows of H^-1.
    """
    block = goes.shape[1]
    for start in range(0, len(w), chunk := max(1, _ELEMENTS // block**2)):
        some = slice(start, start + chunk)
        q = goes[some].to(w.dtype)
        # H^-1_qq among what goes, and the identity elsewhere.
        system = inverse[:, :block] * (q.unsqueeze(1) * q.unsqueeze(2)) + torch.diag_embed(1 - q)
        pull = torch.cholesky_solve(
            (w[some, :block] * q).unsqueeze(2), torch.linalg.cholesky(system)
        )
        w[some] -= pull.squeeze(2) @ inverse
