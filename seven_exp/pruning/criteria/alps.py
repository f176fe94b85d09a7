"""ALPS: each layer's least-squares problem under its sparsity, by ADMM and conjugate gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from seven_exp.pruning.bounds import above_zero, zero_or_more
from seven_exp.pruning.criteria.moments import SPACE, MomentSolver, unused
from seven_exp.pruning.criteria.solver import Budget, Order, Sums
from seven_exp.pruning.registry import register

_LOOK = 3
"""Iterations from one change of rho to the next."""

_LEAST = 1e-6
"""The lowest rho; below it, the support does not change for any reason but rounding."""


@register("alps", when="after", schedule="one_shot", scope="per_layer", space=SPACE)
class Alps(MomentSolver):
    """min over W' of tr (W' - W) H (W' - W)^T with at most k weights, by operator splitting.

    With D the sparse copy of W', P_k the projection that keeps the k largest and V the multiplier:
    W' = (W H - V + rho D) (H + rho I)^-1; D = P_k(W' + V / rho); V += rho (W' - D). Every third
    iteration rho grows by a factor of 1.3, 1.2 or 1.1 if at least 10%, 0.5% or one of the k kept
    weights have changed, and the iteration ends if none has. Then conjugate gradients solve the
    least-squares problem on the support (Meng et al., arXiv 2406.07831, eqs. 4 to 8 and algorithms
    1 and 2). As in the authors' code, inputs are scaled to a unit diagonal of H, the largest of W'
    are the support, and while the first changes are below 0.5%, rho is divided by 5 and the
    iteration starts again. If layers compete, their scores are the scaled weights, and only the
    last step runs.

    Args:
        rho: The first penalty.
        iterations: Of ADMM, at most.
        solve_steps: Steps of the conjugate gradients.
        dampening: Fraction of the mean diagonal that is added to H.
        order: See `Solver`.
    """

    copies = 10  # eigenvectors in float64, and what LAPACK needs to find them

    def __init__(
        self,
        *,
        rho: float = 0.1,
        iterations: int = 300,
        solve_steps: int = 10,
        dampening: float = 0.01,
        order: Order = "blocks",
    ) -> None:
        super().__init__(dampening=dampening, order=order)
        above_zero(rho=rho)
        zero_or_more(iterations=iterations, solve_steps=solve_steps)
        self.rho, self.iterations, self.solve_steps = rho, iterations, solve_steps

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """W_ij^2 H_jj: the error of removing one weight."""
        diagonal = self.hessians(sums).diagonal(dim1=1, dim2=2)
        return weight.to(diagonal.dtype).square() * diagonal.unsqueeze(1)

    def solve(self, sums: Sums, weight: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
        """ADMM for the support, then conjugate gradients for the values."""
        hessians = self.hessians(sums)
        empty = unused(hessians).unsqueeze(1)
        scale = hessians.diagonal(dim1=1, dim2=2).sqrt().unsqueeze(1)
        h = hessians / (scale.mT * scale).masked_fill(empty | empty.mT, 1)
        w = weight * scale
        mask, start = budget.mask, w
        if mask is None:
            start = self._split(w, h, budget.best)
            mask = budget.best(start.square())
        moved = _on_support(w, h, start * mask, mask, self.solve_steps) / scale
        # An input that is always zero leaves its weights undetermined.
        return mask, torch.where(empty, weight.to(moved), moved)

    def _split(self, w: Tensor, h: Tensor, best: Callable[[Tensor], Tensor]) -> Tensor:
        """W' after the iteration.

        Args:
            w: The scaled W: (groups, outputs, inputs).
            h: The scaled H: (groups, inputs, inputs).
            best: The mask that keeps the best of some scores.
        """
        values, vectors = torch.linalg.eigh(h.double())

        def inverse(rho: float) -> Tensor:
            dense: Tensor = (vectors / (values + rho).unsqueeze(1)) @ vectors.mT
            return dense.to(h.dtype)

        rho, grown, seen = self.rho, False, best(w.square())
        k = int(seen.sum())
        fresh, wh = w * seen, w @ h
        moved, d, v, around = w, fresh, torch.zeros_like(w), inverse(rho)
        for i in range(self.iterations):
            moved = (wh - v + rho * d) @ around
            support = best((moved + v / rho).square())
            d = (moved + v / rho) * support
            v = v + rho * (moved - d)
            if (i + 1) % _LOOK:
                continue
            changed = int((support ^ seen).sum())
            grown = grown or changed > 0.005 * k
            if rho < _LEAST or (grown and not changed):
                break
            if grown:
                seen = support
                rho *= 1.3 if changed > 0.1 * k else 1.2 if changed > 0.005 * k else 1.1
            else:
                rho, d, v = rho / 5, fresh, torch.zeros_like(w)
            around = inverse(rho)
        return moved


def _on_support(w: Tensor, h: Tensor, start: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Conjugate gradients for each row's least-squares problem on its kept weights.

    No step increases a row's error.

    Args:
        w: The dense weights: (groups, outputs, inputs).
        h: (groups, inputs, inputs).
        start: First values, zero outside the mask.
        mask: Bool, like w.
        steps: Number of steps; as many as a row has kept weights give the optimum.
    """
    x, residual = start, ((w - start) @ h) * mask
    direction, size = residual, residual.square().sum(2, keepdim=True)
    for _ in range(steps):
        ahead = (direction @ h) * mask
        curve = (direction * ahead).sum(2, keepdim=True)
        length = torch.where(curve > 0, size / curve, 0)
        x, residual = x + length * direction, residual - length * ahead
        before, size = size, residual.square().sum(2, keepdim=True)
        direction = residual + torch.where(before > 0, size / before, 0) * direction
    return x
