"""SparseGPT: layer-wise pruning by the input's second moments, the error pushed on."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.solver import Order, Solver, State
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.inputs import Use
from seven_exp.pruning.patterns import NOfM
from seven_exp.pruning.registry import register
from seven_exp.pruning.select import kept_count

Choice = Callable[[slice, Tensor], Tensor]
"""``choice(columns, scores)``: which weights of these columns stay."""

_MANY = 100
"""A block that keeps more weights than this gives up one more, as the authors' code does: under 1%.

The place goes to the best of the pruned weights, so that the count is exact. Smaller blocks choose
exactly.
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
        self._uses: Sequence[Use] = []
        self._factors: list[Tensor] = []
        self._hessians: list[Tensor] = []
        self._chosen: Tensor | None = None

    def init(self, weight: Tensor) -> State:
        """One sum for each pair of inputs."""
        groups, _, inputs = weight.shape
        return {"moments": weight.new_zeros(groups, inputs, inputs)}

    def see(self, state: State, inputs: Sequence[Tensor]) -> None:
        """Sum x x^T."""
        for moment, x in zip(state["moments"], inputs, strict=True):
            moment.addmm_(x.T, x)

    def solve(self, uses: Sequence[Use], weights: Sequence[Tensor], states: list[State]) -> None:
        """U of each layer, and 1 / U_jj for each weight of column j."""
        self._uses, self._factors, self._hessians, self._chosen = uses, [], [], None
        self.state["scale"] = []
        for use, weight, state in zip(uses, weights, states, strict=True):
            hessians = 2 / state["uses"].clamp(min=1)[:, None, None] * state["moments"]
            hessians = torch.stack([_dampened(hessian, self.dampening) for hessian in hessians])
            factor = torch.stack([_factor(hessian) for hessian in hessians])
            scale = 1 / factor.diagonal(dim1=1, dim2=2).unsqueeze(1)
            scales = scale.expand_as(use.matrices(weight, len(factor)))
            self._factors.append(factor)
            self._hessians.append(hessians)
            self.state["scale"].append(use.weight(scales, weight.shape))

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """w^2 / U_jj^2 of the weights as they are."""
        return [
            (w.detach().to(scale.dtype) * scale).square()
            for w, scale in zip(weights, self.state["scale"], strict=True)
        ]

    def rank(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], progress: float, density: float
    ) -> list[Tensor]:
        """Of a single layer, each weight's standing within its block or group of columns."""
        scores = self.scores(weights)
        if len(weights) > 1 or constant(scores[0], masks[0]):
            return scores
        weight, use, factor, pattern = weights[0], self._uses[0], self._factors[0], self.pattern
        alive = use.matrices(masks[0], len(factor))
        chosen = torch.zeros_like(alive)
        standing = torch.zeros(alive.shape, dtype=factor.dtype, device=alive.device)

        def choose_group(columns: slice, scores: Tensor) -> Tensor:
            assert isinstance(pattern, NOfM)
            shape = (-1, pattern.m, *weight.shape[2:])
            best = pattern.protected(scores.view(shape), alive[..., columns].reshape(shape))
            standing[..., columns] = best.view_as(scores).to(standing.dtype)
            return best.view_as(scores)

        def choose(columns: slice, scores: Tensor) -> Tensor:
            order = scores.masked_fill(~alive[..., columns], -1.0).flatten().argsort(stable=True)
            places = torch.empty_like(order)
            places[order] = torch.arange(1, len(order) + 1, device=order.device)
            places = places.view_as(scores)
            standing[..., columns] = places / len(order)
            # The authors prune what is lower than or equal to the threshold, one weight more.
            pruned = kept_count(1 - density, len(order))
            more = 0 < pruned < len(order) - _MANY
            chosen[..., columns] = places > pruned + more
            return chosen[..., columns]

        if isinstance(pattern, NOfM) and density <= pattern.n / pattern.m:
            width = pattern.m * math.prod(weight.shape[2:])
            self._sweep(use.matrices(weight, len(factor)), factor, choose_group, width)
        else:
            self._chosen = chosen
            self._sweep(use.matrices(weight, len(factor)), factor, choose)
        return [use.weight(standing, weight.shape)]

    def compensate(
        self, weights: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> list[Tensor]:
        """The weights after the sweep with the new masks.

        A layer's count is exact, so a weight or so more than its blocks have chosen stays. It takes
        the value that fits best beside the others, which have been moved without it.
        """
        swept = []
        each = zip(self._uses, weights, after, self._factors, self._hessians, strict=True)
        for use, weight, mask, factor, hessian in each:
            matrices, kept = (use.matrices(t, len(factor)) for t in (weight, mask))
            chosen = kept if self._chosen is None or (self._chosen & ~kept).any() else self._chosen
            moved = self._sweep(matrices, factor, _given(chosen)) * chosen
            _fit(moved, matrices, hessian, kept & ~chosen)
            swept.append(use.weight(moved, weight.shape).to(weight.dtype))
        self._factors, self._hessians, self._chosen = [], [], None
        return swept

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


def _factor(hessian: Tensor) -> Tensor:
    """Upper U with U^T U = H^-1; infinite where an input is always zero: its weights go first."""
    unused = hessian.diagonal() == 0
    whole = hessian.double() + torch.diag(unused.double())
    factor = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(whole)), upper=True
    ).to(hessian.dtype)
    factor.diagonal()[unused] = torch.inf
    return factor
