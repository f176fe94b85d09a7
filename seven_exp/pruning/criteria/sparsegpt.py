"""SparseGPT: layer-wise pruning by the inputs' second moments, with error propagation."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from seven_exp.pruning.criteria.moments import SPACE, ColumnSolver, factors, unused
from seven_exp.pruning.criteria.solver import Budget, Sums
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.patterns import NOfM
from seven_exp.pruning.registry import register
from seven_exp.pruning.select import ascending, kept_count

Choice = Callable[[slice, Tensor], Tensor]
"""``choice(columns, scores)``: which weights of these columns stay."""

_MANY = 100
"""A block of columns that keeps more weights than this first drops one more.

The authors' code sorts the scores of a block of n weights, takes the one at index int(sparsity * n)
as its threshold and prunes all that are `<=` it: int(sparsity * n) + 1 weights. Dropping one more
propagates errors from the same weights as the authors' code. The best of the layer's pruned weights
then returns, so that the layer's count is exact. Smaller blocks, where one weight is 1% or more,
are chosen exactly.
"""


@register("sparsegpt", when="after", schedule="one_shot", scope="per_layer", space=SPACE)
class SparseGpt(ColumnSolver):
    """w^2 / U_jj^2; each pruned weight's error is propagated to later columns of its row.

    U is the upper Cholesky factor of H^-1, and H = (2/n) sum of x x^T over the n inputs of the
    layer, plus a fraction of its mean diagonal (Frantar and Alistarh, arXiv 2301.00774, alg. 1).
    Convolutions count as linear maps of patches. If layers are independent, columns are scored
    block by block, with the errors of earlier blocks propagated. If layers compete, all columns
    are scored at once in the dense model. A single layer in an N:M pattern is scored group by
    group, with the errors of earlier groups propagated. See `ColumnSolver` for the settings.
    """

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """w^2 / U_jj^2 of the present weights."""
        return _score(weight, _factors(self.hessians(sums)))

    def solve(self, sums: Sums, weight: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
        """Choose block by block, unless the mask is given; then prune with the final mask.

        The layer's count is exact, so it may keep a weight more than its blocks chose. That weight
        gets the value with the least output error, given the others, which were moved without it.
        """
        hessians = self.hessians(sums)
        del sums["moments"]  # As large as H.
        factors = _factors(hessians)
        mask, chosen, moved = budget.mask, None, None
        if mask is None:
            standing, chosen, moved = self._standing(weight, factors, budget)
            mask = budget.best(standing)
        if moved is None or chosen is None or (chosen & ~mask).any():
            chosen, moved = mask, self._prune_columns(weight, factors, _given(mask))
        moved *= chosen
        _fit(moved, weight, factors, mask & ~chosen)
        return mask, moved

    def _standing(
        self, weight: Tensor, factors: Tensor, budget: Budget
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Each weight's rank within its block or group of columns, and its part of the layer.

        Returns:
            The ranks, and the blocks' masks and the weights moved with them, if blocks choose.
        """
        pattern = budget.pattern
        if constant(scores := _score(weight, factors), budget.alive):
            return scores, None, None
        del scores
        chosen = torch.zeros_like(budget.alive)
        standing = torch.zeros(weight.shape, dtype=factors.dtype, device=weight.device)

        def choose_group(columns: slice, scores: Tensor) -> Tensor:
            assert isinstance(pattern, NOfM)
            shape = (-1, pattern.m, *budget.kernel)
            alive = budget.alive[..., columns].reshape(shape)
            best = pattern.protected(scores.view(shape), alive)
            standing[..., columns] = best.view_as(scores).to(standing.dtype)
            return best.view_as(scores)

        def choose(columns: slice, scores: Tensor) -> Tensor:
            near = (scores, *(t[..., columns] for t in (budget.alive, standing, chosen)))
            for score, alive, rank, stays in zip(
                *(t.chunk(budget.parts) for t in near), strict=True
            ):
                order = ascending(score, alive)
                places = torch.empty_like(order, dtype=torch.int32)
                numbers = torch.arange(1, len(order) + 1, dtype=torch.int32, device=order.device)
                places[order] = numbers
                places = places.view_as(score)
                rank[:] = places / len(order)
                pruned = kept_count(1 - budget.density, len(order))
                more = 0 < pruned < len(order) - _MANY
                stays[:] = places > pruned + more
            return chosen[..., columns]

        if isinstance(pattern, NOfM) and budget.density <= pattern.n / pattern.m:
            self._prune_columns(weight, factors, choose_group, pattern.m * math.prod(budget.kernel))
            return standing, None, None
        return standing, chosen, self._prune_columns(weight, factors, choose)

    def _prune_columns(
        self, weight: Tensor, factor: Tensor, choice: Choice, width: int | None = None
    ) -> Tensor:
        """Prune column by column and propagate the errors, blocked so that most work is matmuls.

        Args:
            weight: (groups, outputs, inputs).
            factor: (groups, inputs, inputs).
            choice: Chooses the weights that stay.
            width: Number of columns of a block to choose at a time; None: all.

        Returns:
            The moved weights in the factor's dtype; pruned ones are not yet zero.
        """
        w = weight.detach().to(factor.dtype, copy=True)
        width = width or self.block
        for own in self.column_blocks(w.shape[2], width):
            # LAPACK's factor lies column by column, and is read by rows here.
            u, columns = factor[:, own, own].contiguous(), w[..., own]
            diagonal = u.diagonal(dim1=1, dim2=2).unsqueeze(1)
            goes, errors = torch.empty_like(columns, dtype=torch.bool), torch.empty_like(columns)
            each = (t.unbind(2) for t in (columns, errors, diagonal, u.unsqueeze(1)))
            for j, (column, error, scale, row) in enumerate(zip(*each, strict=True)):
                if j % width == 0:
                    near = slice(j, min(j + width, columns.shape[2]))
                    scores = (columns[..., near] / diagonal[..., near]).square()
                    goes[..., near] = ~choice(slice(own.start + j, own.start + near.stop), scores)
                torch.mul(column, goes[..., j], out=error).div_(scale)
                columns[..., j + 1 :] -= error.unsqueeze(2) * row[..., j + 1 :]
            w[..., own.stop :] -= errors @ factor[:, own, own.stop :]
        return w


def _fit(moved: Tensor, weight: Tensor, factors: Tensor, places: Tensor) -> None:
    """Give some weights, one by one, the value with the least output error.

    Args:
        moved: (groups, outputs, inputs), changed in place; zero at these weights.
        weight: The original weight, same shape.
        factors: U of each group: (groups, inputs, inputs).
        places: Bool, same shape as the weight: which weights.
    """
    for group, row, column in places.nonzero().tolist():
        slopes = _hessian_column(factors[group], column)
        error = moved[group, row] - weight[group, row]
        best = -(error @ slopes) / slopes[column]
        # An input that is always zero leaves the value undetermined.
        own = weight[group, row, column].to(best)
        moved[group, row, column] = torch.where(slopes[column] > 0, best, own)


def _hessian_column(factor: Tensor, column: int) -> Tensor:
    """A column of H = U^-1 U^-T, so that H need not be kept."""
    unit = torch.zeros_like(factor[:, :1])
    unit[column] = 1
    half = torch.linalg.solve_triangular(factor.mT, unit, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(factor, half, upper=True)
    return whole.squeeze(1)


def _given(mask: Tensor) -> Choice:
    return lambda columns, _: mask[..., columns]


def _score(weight: Tensor, factors: Tensor) -> Tensor:
    """w^2 / U_jj^2."""
    scale = 1 / factors.diagonal(dim1=1, dim2=2).unsqueeze(1)
    return (weight.to(scale.dtype) * scale).square()


def _factors(hessians: Tensor) -> Tensor:
    """U of each group; infinite for inputs that are always zero: these go first."""
    never = unused(hessians)
    factor = factors(hessians)
    factor.diagonal(dim1=1, dim2=2)[never] = torch.inf
    return factor
