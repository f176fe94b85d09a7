"""oBERT: the optimal brain surgeon with a block-diagonal Fisher matrix."""

import torch
from torch import Tensor
from torch.nn import functional

from seven_exp.pruning.bounds import above_zero, one_or_more
from seven_exp.pruning.criteria.score import CompensatingScore, State, Tensors, precision
from seven_exp.pruning.registry import register

_CHUNK = 4096
"""Number of blocks inverted at a time, which bounds the working memory."""

_ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Fraction of the trace to add if gradients are nearly equal: their mean outer product in float32
can then have eigenvalues as low as a third of this below zero."""

_SPACE = {"dampening": "tag(log,interval(1e-9,1e-1))"}


@register("obert_pre", when="before", schedule="exponential", rounds=10, space=_SPACE)
@register("obert", when="during", schedule="cubic", space=_SPACE)
class Obert(CompensatingScore):
    """w^2 / (2 [F^-1]_qq); the kept weights of each block are moved to minimise the loss.

    F is the mean of g g^T, plus lambda I, on blocks of consecutive weights of a layer, without the
    pruned ones (Kurtic et al., "The optimal BERT surgeon", arXiv 2203.07259, eqs. 4 to 6; Singh and
    Alistarh, "WoodFisher", 2004.14340). With Q the newly pruned weights of a block and S the kept
    ones, delta_S = F_SS^-1 F_SQ w_Q. This is the exact joint optimum; the authors sum the updates
    of single weights. The authors compute m new gradients at each pruning step; here a running mean
    over about m gradients follows the training.

    Args:
        gradients: m.
        block: Weights per block.
        dampening: lambda. Blocks whose F in float32 is indefinite by rounding get more.
    """

    def __init__(self, *, gradients: int = 1024, block: int = 50, dampening: float = 1e-7) -> None:
        one_or_more(gradients=gradients, block=block)
        above_zero(dampening=dampening)
        self.gradients, self.block, self.dampening = gradients, block, dampening

    def init(self, weights: Tensors) -> State:
        """F = 0."""
        return State({"fisher": [self._empty(weight) for weight in weights]})

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """Update the running mean with the gradient's outer product, block by block."""
        seen = state.numbers["seen"] = state.numbers.get("seen", 0) + 1
        share = 1 / min(seen, self.gradients)
        for fisher, grad in zip(state["fisher"], grads, strict=True):
            rows = self._blocks(grad)
            fisher.baddbmm_(rows.unsqueeze(2), rows.unsqueeze(1), beta=1 - share, alpha=share)

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """w^2 / (2 [F^-1]_qq); weights of zero count as pruned."""
        if "seen" not in state.numbers:
            return [torch.zeros_like(weight, dtype=precision(weight)) for weight in weights]
        scores = []
        for fisher, weight in zip(state["fisher"], weights, strict=True):
            w = self._blocks(weight.detach())
            parts = [
                w[own].double().square()
                / (2 * _inverse_diagonal(self._dampened(fisher[own]), w[own] != 0))
                for own in _chunks(len(w))
            ]
            score = torch.cat(parts).flatten()[: weight.numel()].view_as(weight)
            scores.append(score.to(precision(weight)))
        return scores

    def compensate(
        self, state: State, weights: Tensors, before: Tensors, after: Tensors
    ) -> list[Tensor]:
        """w_S + delta_S."""
        moved = []
        for fisher, weight, old, new in zip(state["fisher"], weights, before, after, strict=True):
            w, stays = self._blocks(weight.detach()), self._blocks(new)
            goes = self._blocks(old) & ~stays
            parts = [
                w[own] + _shift(self._dampened(fisher[own]), w[own], stays[own], goes[own])
                for own in _chunks(len(w))
            ]
            moved.append(torch.cat(parts).flatten()[: weight.numel()].view_as(weight))
        return moved

    def _blocks(self, tensor: Tensor) -> Tensor:
        """Rows of ``block`` consecutive elements, the last one padded with zeros."""
        flat = tensor.flatten()
        return functional.pad(flat, (0, -flat.numel() % self.block)).view(-1, self.block)

    def _empty(self, weight: Tensor) -> Tensor:
        """(blocks, block, block) zeros."""
        shape = (-(-weight.numel() // self.block), self.block, self.block)
        return torch.zeros(shape, dtype=precision(weight), device=weight.device)

    def _dampened(self, fisher: Tensor) -> Tensor:
        """F plus lambda I for some blocks, in float64, which a small lambda needs."""
        fisher = fisher.to(torch.float64, copy=True)
        fisher.diagonal(dim1=1, dim2=2).add_(self.dampening)
        return fisher


def _chunks(blocks: int) -> list[slice]:
    return [slice(i, min(i + _CHUNK, blocks)) for i in range(0, blocks, _CHUNK)]


def _within(matrices: Tensor, members: Tensor) -> Tensor:
    """The matrices on their members, and the identity elsewhere."""
    inside = matrices * (members.unsqueeze(1) & members.unsqueeze(2))
    inside.diagonal(dim1=1, dim2=2).add_((~members).to(inside.dtype))
    return inside


def _factor(matrices: Tensor) -> Tensor:
    """Lower Cholesky factors; matrices that are indefinite by rounding get more dampening."""
    factors: Tensor
    factors, failures = torch.linalg.cholesky_ex(matrices)
    if (failed := failures > 0).any():
        dampened = matrices[failed]
        diagonal = dampened.diagonal(dim1=1, dim2=2)
        diagonal.add_(_ROUNDING * diagonal.sum(1, keepdim=True))
        factors[failed] = torch.linalg.cholesky(dampened)
    return factors


def _inverse_diagonal(fisher: Tensor, alive: Tensor) -> Tensor:
    factor = _factor(_within(fisher, alive))
    return torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)


def _shift(fisher: Tensor, w: Tensor, stays: Tensor, goes: Tensor) -> Tensor:
    pull = (fisher @ (w * goes).double().unsqueeze(2)).squeeze(2) * stays
    factor = _factor(_within(fisher, stays))
    return torch.cholesky_solve(pull.unsqueeze(2), factor).squeeze(2).to(w.dtype)
