"""SparseGPT: layer-wise pruning by the input's second moments, the error pushed on."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.solver import Budget, Order, Solver, Sums
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.patterns import NOfM
from seven_exp.pruning.registry import register
from seven_exp.pruning.select import kept_count

Choice = Callable[[slice, Tensor], Tensor]
"""``choice(columns, scores)``: which weights of these columns stay."""

_MANY = 100
"""A block of columns that keeps more weights than this first gives up one more.

The authors' code sorts the scores of a block of n weights, takes the one at index int(sparsity * n)
as its threshold and prunes all that are `<=` it: int(sparsity * n) + 1 weights. So errors are
pushed on from the same weights as there. The place goes to the best of the layer's pruned weights,
so that its count is exact. A smaller block, where one weight is 1% or more, chooses exactly.
"""


@register("sparsegpt", when="after", schedule="one_shot", scope="per_layer")
class SparseGpt(Solver):
    """w^2 / U_jj^2, each pruned weight's error pushed on to the columns behind it in its row.

    U is the upper Cholesky factor of H^-1, and H = (2/n) sum of x x^T over the n inputs of the
    layer, with a share of its mean diagonal added (Frantar and Alistarh, arXiv 2301.00774,
    alg. 1). Convolutions count as linear maps of patches. Where layers are on their own, columns
    are scored block by block, by the weights as the blocks before have left them; where they
    compete, all are scored at once in the dense model. Of a single layer in an N:M pattern each
    group is chosen by the weights as the groups before have left them.

    Args:
        block: Columns a block.
        dampening: Share of the mean diagonal that is added to H.
        order: See `Solver`.
    """

    def __init__(
        self, *, block: int = 128, dampening: float = 0.01, order: Order = "blocks"
    ) -> None:
        super().__init__(order=order)
        if block < 1:
            raise ValueError(f"block is {block}: choose 1 or more")
        if dampening <= 0:
            raise ValueError(f"dampening is {dampening}: choose a positive number")
        self.block, self.dampening = block, dampening

    def init(self, weight: Tensor) -> Sums:
        """One sum for each pair of inputs."""
        groups, _, inputs = weight.shape
        return {"moments": weight.new_zeros(groups, inputs, inputs)}

    def see(self, sums: Sums, inputs: Sequence[Tensor]) -> None:
        """Sum x x^T."""
        for moment, x in zip(sums["moments"], inputs, strict=True):
            moment.addmm_(x.T, x)

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """w^2 / U_jj^2 of the weights as they are."""
        return _score(weight, _factors(self._hessians(sums)))

    def solve(self, sums: Sums, weight: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
        """Choose block by block, where nothing is chosen yet; then sweep with the new mask.

        A layer's count is exact, so a weight or so more than its blocks have chosen stays. It takes
        the value that fits best beside the others, which have been moved without it.
        """
        hessians = self._hessians(sums)
        factors = _factors(hessians)
        mask, chosen = budget.mask, None
        if mask is None:
            standing, chosen = self._standing(weight, factors, budget)
            mask = budget.best(standing)
        if chosen is None or (chosen & ~mask).any():
            chosen = mask
        moved = self._sweep(weight, factors, _given(chosen)) * chosen
        _fit(moved, weight, hessians, mask & ~chosen)
        return mask, moved

    def _hessians(self, sums: Sums) -> Tensor:
        """H, dampened, of each group."""
        hessians = 2 / sums["uses"].clamp(min=1)[:, None, None] * sums["moments"]
        return torch.stack([_dampened(hessian, self.dampening) for hessian in hessians])

    def _standing(
        self, weight: Tensor, factors: Tensor, budget: Budget
    ) -> tuple[Tensor, Tensor | None]:
        """Each weight's rank within its block or group of columns, and what the blocks keep."""
        scores, pattern = _score(weight, factors), budget.pattern
        if constant(scores, budget.alive):
            return scores, None
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
            alive = budget.alive[..., columns]
            order = scores.masked_fill(~alive, -1.0).flatten().argsort(stable=True)
            places = torch.empty_like(order)
            places[order] = torch.arange(1, len(order) + 1, device=order.device)
            places = places.view_as(scores)
            standing[..., columns] = places / len(order)
            pruned = kept_count(1 - budget.density, len(order))
            more = 0 < pruned < len(order) - _MANY
            chosen[..., columns] = places > pruned + more
            return chosen[..., columns]

        if isinstance(pattern, NOfM) and budget.density <= pattern.n / pattern.m:
            self._sweep(weight, factors, choose_group, pattern.m * math.prod(budget.kernel))
            return standing, None
        self._sweep(weight, factors, choose)
        return standing, chosen

    def _sweep(
        self, weight: Tensor, factor: Tensor, choice: Choice, width: int | None = None
    ) -> Tensor:
        """Prune column by column, pushing errors on; in blocks, so that most of it is matmuls.

        Args:
            weight: (groups, outputs, inputs).
            factor: (groups, inputs, inputs).
            choice: Says what stays.
            width: So many columns of a block are chosen at a time; None: all.

        Returns:
            The weights as they are moved, in the factor's dtype; what is pruned is not yet zero.
        """
        w = weight.detach().to(factor.dtype, copy=True)
        width = width or self.block
        block = width * max(1, self.block // width)
        for start in range(0, w.shape[2], block):
            own = slice(start, min(start + block, w.shape[2]))
            u, columns = factor[:, own, own], w[..., own]
            diagonal = u.diagonal(dim1=1, dim2=2).unsqueeze(1)
            stays, errors = torch.zeros_like(columns, dtype=torch.bool), torch.zeros_like(columns)
            for j in range(columns.shape[2]):
                if j % width == 0:
                    near = slice(j, min(j + width, columns.shape[2]))
                    scores = (columns[..., near] / diagonal[..., near]).square()
                    stays[..., near] = choice(slice(start + j, start + near.stop), scores)
                errors[..., j] = columns[..., j] * ~stays[..., j] / diagonal[..., j]
                columns[..., j + 1 :] -= errors[..., j : j + 1] * u[:, j : j + 1, j + 1 :]
            w[..., own.stop :] -= errors @ factor[:, own, own.stop :]
        return w


def _fit(moved: Tensor, weight: Tensor, hessian: Tensor, places: Tensor) -> None:
    """Give the weights at some places, one by one, the value of least error in the outputs.

    Args:
        moved: (groups, outputs, inputs), changed in place; zero at the places.
        weight: Likewise, as it was.
        hessian: (groups, inputs, inputs).
        places: Bool, like the weights.
    """
    for group, row, column in places.nonzero().tolist():
        slopes, error = hessian[group, column], moved[group, row] - weight[group, row]
        best = -(error @ slopes) / slopes[column]
        # An input that is always zero leaves the value open.
        own = weight[group, row, column].to(best)
        moved[group, row, column] = torch.where(slopes[column] > 0, best, own)


def _given(mask: Tensor) -> Choice:
    return lambda columns, _: mask[..., columns]


def _dampened(hessian: Tensor, dampening: float) -> Tensor:
    """H with a share of its mean diagonal added, that of the inputs in use; 0 for the others."""
    diagonal = hessian.diagonal()
    used = diagonal != 0
    diagonal[used] += dampening * diagonal.sum() / max(1, int(used.sum()))
    return hessian


def _score(weight: Tensor, factors: Tensor) -> Tensor:
    """w^2 / U_jj^2."""
    scale = 1 / factors.diagonal(dim1=1, dim2=2).unsqueeze(1)
    return (weight.to(scale.dtype) * scale).square()


def _factors(hessians: Tensor) -> Tensor:
    """U of each group."""
    return torch.stack([_factor(hessian) for hessian in hessians])


def _factor(hessian: Tensor) -> Tensor:
    """Upper U with U^T U = H^-1; infinite where an input is always zero: its weights go first."""
    unused = hessian.diagonal() == 0
    whole = hessian.double() + torch.diag(unused.double())
    factor: Tensor = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(whole)), upper=True
    ).to(hessian.dtype)
    factor.diagonal()[unused] = torch.inf
    return factor
