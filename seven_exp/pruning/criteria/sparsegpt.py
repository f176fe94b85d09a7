"""SparseGPT: layer-wise pruning by the input's second moments, the error pushed on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.criteria.base import Criterion, LossFunction, precision
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.inputs import evaluating, watching
from seven_exp.pruning.patterns import NOfM
from seven_exp.pruning.registry import register

Choice = Callable[[slice, Tensor], Tensor]
"""``choice(columns, scores)``: which weights of these columns stay."""


@register("sparsegpt", when="after", schedule="one_shot", scope="per_layer")
class SparseGpt(Criterion):
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
    """

    uses_gradients = True
    only_before = True
    one_by_one = True

    def __init__(self, *, block: int = 128, dampening: float = 0.01) -> None:
        super().__init__()
        if block < 1:
            raise ValueError(f"block is {block}: choose 1 or more")
        if dampening <= 0:
            raise ValueError(f"dampening is {dampening}: choose a positive number")
        self.block, self.dampening = block, dampening
        self._factors: list[Tensor] = []

    def measure(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        values: Sequence[Tensor],
        batches: Sequence[Any],
        loss_fn: LossFunction,
    ) -> None:
        """Sum x x^T over the batches and factor the inverse."""
        columns = [w[0].numel() for w in weights]
        moments = [
            torch.zeros(n, n, dtype=precision(w), device=w.device)
            for n, w in zip(columns, weights, strict=True)
        ]
        seen = [0] * len(weights)

        def add(i: int, inputs: Tensor) -> None:
            inputs = inputs.to(moments[i].dtype)
            moments[i].addmm_(inputs.T, inputs)
            seen[i] += len(inputs)

        with watching(weights, add), evaluating(model):
            for batch in batches:
                loss_fn(model, batch)
        counts = self.averaged(
            [
                torch.tensor(n, dtype=torch.float32, device=w.device)
                for n, w in zip(seen, weights, strict=True)
            ]
        )
        self._factors = [
            _factor(2 / max(1.0, float(n)) * moment, self.dampening)
            for n, moment in zip(counts, self.averaged(moments), strict=True)
        ]
        self.state["diagonal"] = [factor.diagonal().clone() for factor in self._factors]

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """w^2 / U_jj^2 of the weights as they are."""
        return [
            (w.detach().to(diagonal.dtype).flatten(1) / diagonal).square().view(w.shape)
            for w, diagonal in zip(weights, self.state["diagonal"], strict=True)
        ]

    def rank(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], progress: float, density: float
    ) -> list[Tensor]:
        """Of a single layer, each weight's standing within its block or group of columns."""
        scores = self.scores(weights)
        if len(weights) > 1 or constant(scores[0], masks[0]):
            return scores
        weight, alive, pattern = weights[0], masks[0].flatten(1), self.pattern
        standing = torch.zeros(alive.shape, dtype=self._factors[0].dtype, device=alive.device)

        def choose_group(columns: slice, scores: Tensor) -> Tensor:
            assert isinstance(pattern, NOfM)
            shape = (-1, pattern.m, *weight.shape[2:])
            best = pattern.protected(scores.view(shape), alive[:, columns].reshape(shape)).flatten(
                1
            )
            standing[:, columns] = best.to(standing.dtype)
            return best

        def choose(columns: slice, scores: Tensor) -> Tensor:
            order = scores.masked_fill(~alive[:, columns], -1.0).flatten().argsort(stable=True)
            places = torch.empty_like(order)
            places[order] = torch.arange(1, len(order) + 1, device=order.device)
            share = (places / len(order)).view_as(scores)
            standing[:, columns] = share
            return share > 1 - density

        if isinstance(pattern, NOfM) and density <= pattern.n / pattern.m:
            width = pattern.m * weight[0, 0].numel()
            self._sweep(weight, self._factors[0], choose_group, width)
        else:
            self._sweep(weight, self._factors[0], choose)
        return [standing.view(weight.shape)]

    def compensate(
        self, weights: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> list[Tensor]:
        """The weights after the sweep with the new masks."""
        swept = [
            self._sweep(weight, factor, _given(mask.flatten(1)))
            for weight, mask, factor in zip(weights, after, self._factors, strict=True)
        ]
        self._factors = []
        return swept

    def _sweep(
        self, weight: Tensor, factor: Tensor, choice: Choice, width: int | None = None
    ) -> Tensor:
        """Prune column by column, pushing errors on; in blocks, so that most of it is matmuls.

        ``width`` columns of a block are chosen at a time; None: all.
        """
        w = weight.detach().to(factor.dtype).flatten(1).clone()
        width = width or self.block
        block = width * max(1, self.block // width)
        for start in range(0, w.shape[1], block):
            own = slice(start, min(start + block, w.shape[1]))
            u, columns = factor[own, own], w[:, own]
            stays, errors = torch.zeros_like(columns, dtype=torch.bool), torch.zeros_like(columns)
            for j in range(columns.shape[1]):
                if j % width == 0:
                    near = slice(j, min(j + width, columns.shape[1]))
                    scores = (columns[:, near] / u.diagonal()[near]).square()
                    stays[:, near] = choice(slice(start + j, start + near.stop), scores)
                errors[:, j] = columns[:, j] * ~stays[:, j] / u[j, j]
                columns[:, j + 1 :] -= errors[:, j : j + 1] * u[j, j + 1 :]
            w[:, own.stop :] -= errors @ factor[own, own.stop :]
        return w.view(weight.shape).to(weight.dtype)


def _given(mask: Tensor) -> Choice:
    return lambda columns, _: mask[:, columns]


def _factor(hessian: Tensor, dampening: float) -> Tensor:
    """Upper U with U^T U = H^-1; infinite where an input is always zero: its weights go first."""
    diagonal = hessian.diagonal()
    unused = diagonal == 0
    diagonal += dampening * diagonal.sum() / max(1, int((~unused).sum()))
    diagonal[unused] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
    factor = torch.linalg.cholesky(inverse, upper=True).to(hessian.dtype)
    factor.diagonal()[unused] = torch.inf
    return factor
