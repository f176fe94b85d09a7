"""DSnoT: exchanges kept and pruned weights after another solver, without training."""

import math

import torch
from torch import Tensor

from seven_exp.pruning.bounds import zero_or_more
from seven_exp.pruning.criteria.score import GradientScore, Score, Tensors
from seven_exp.pruning.criteria.solver import (
    Budget,
    GradientSolver,
    Order,
    ReaderSolver,
    Solver,
    Sums,
)
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.patterns import NOfM, Pattern, Units
from seven_exp.pruning.registry import build_method, register


@register("dsnot", when="after", schedule="one_shot", scope="per_row")
class DSnoT(Solver):
    """Exchanges weights within rows to lower the expected error of each output.

    A row's error is e = sum over its pruned weights of W_ij E[X_j]. In each cycle, if e > 0, the
    pruned weight with the largest W_ij E[X_j] / Var[X_j] returns, and of the kept weights with
    W_ij E[X_j] < 0 that with the least |W_ij| ||X_j|| goes; if e < 0, with all signs reversed. Each
    weight changes once at most (Zhang et al., arXiv 2310.08915, eqs. 3 to 6). In N:M, the weight
    that goes is the one of the same group with the least |W_ij| ||X_j||, whatever its sign, and a
    row is done before e would change its sign. All weights keep their dense values. Both are as in
    the authors' code.

    In a model with attention, the weights outside it keep the first masks, as by default in the
    authors' code, which skips MLPs.

    The refinement is a solver around a solver: it needs the sums of both in one pass, and a mask
    from the other one, and neither knows of the other. A setting of every solver would need the
    same code behind each of them.

    Args:
        start: Name of the solver, or of the pruner that ranks by weights alone, which chooses the
            first masks, with its default settings.
        cycles: Exchanges per row, at most.
        threshold: |e| below which a row is done. The authors' 0.1 is for the sum over sequences of
            2,048 tokens, here it is the mean.
        everywhere: Whether weights outside attention are exchanged, too.
        order: See `Solver`.
    """

    def __init__(
        self,
        *,
        start: str = "wanda",
        cycles: int = 50,
        threshold: float = 5e-5,
        everywhere: bool = False,
        order: Order = "blocks",
    ) -> None:
        super().__init__(order=order)
        zero_or_more(cycles=cycles, threshold=threshold)
        self.start, self.cycles, self.threshold = _chooser(start), cycles, threshold
        self.everywhere = everywhere

    def check(self, pattern: Pattern) -> None:
        """Whole units can't exchange single weights."""
        if isinstance(pattern, Units):
            raise ValueError(
                f"dsnot exchanges single weights, but pattern '{pattern}' removes whole units: "
                "choose unstructured or N:M"
            )

    def init(self, weight: Tensor) -> Sums:
        """The sums of ``start``, and two per input."""
        zeros = torch.zeros_like(weight[:, 0])
        return {**self.start.init(weight), "sum": zeros, "sum of squares": zeros.clone()}

    def see(self, sums: Sums, inputs: Tensors) -> None:
        """Sum x_j and x_j^2."""
        self.start.see(sums, inputs)
        sums["sum"] += torch.stack([x.sum(0) for x in inputs])
        sums["sum of squares"] += torch.stack([x.square().sum(0) for x in inputs])

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """Those of ``start``."""
        return self.start.score(sums, weight)

    def solve(self, sums: Sums, weight: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
        """The mask of ``start``, then the exchanges."""
        mask, _ = self.start.solve(sums, weight, budget)
        if not (self.everywhere or budget.attention):
            return mask, weight
        uses = sums["uses"].clamp(min=1).unsqueeze(1)
        mean, square = sums["sum"] / uses, sums["sum of squares"]
        spread = (square / uses - mean.square()).clamp(min=torch.finfo(mean.dtype).tiny)
        change = weight * mean.unsqueeze(1)
        gain, cost = change / spread.unsqueeze(1), weight.abs() * square.sqrt().unsqueeze(1)
        return self._exchanged(mask, budget, change, gain, cost), weight

    def _exchanged(
        self, mask: Tensor, budget: Budget, change: Tensor, gain: Tensor, cost: Tensor
    ) -> Tensor:
        """The mask after the exchanges.

        Args:
            mask: (groups, outputs, inputs), like all others.
            budget: Tells which weights may return, and the groups in N:M.
            change: W_ij E[X_j].
            gain: By which pruned weights return.
            cost: By which kept weights go.
        """
        mask, groups = mask.clone(), _groups(budget, mask.shape[2])
        # The weights that have not changed yet.
        gone, kept = budget.alive & ~mask, mask.clone()
        error = (change * ~mask).sum(2, keepdim=True)
        busy = torch.ones_like(error, dtype=torch.bool)
        for _ in range(self.cycles):
            busy = busy & (error.abs() > self.threshold)
            sign = torch.where(error > 0, 1.0, -1.0).to(change.dtype)
            back, found = _first(sign * gain, gone & (sign * change > 0))
            busy = busy & found
            fit = kept & (sign * change < 0) if groups is None else kept & (groups == groups[back])
            away, found = _first(-cost, fit)
            busy = busy & found
            after = error + change.gather(2, away) - change.gather(2, back)
            if groups is not None:
                busy = busy & (after * sign > 0)
            if not busy.any():
                break
            for place, places in ((back, gone), (away, kept)):
                places.scatter_(2, place, places.gather(2, place) & ~busy)
                mask.scatter_(2, place, mask.gather(2, place) ^ busy)
            error = torch.where(busy, after, error)
        return mask


def _first(score: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the best place in each row, and whether there is one."""
    best = score.masked_fill(~places, -torch.inf).argmax(2, keepdim=True)
    return best, places.any(2, keepdim=True)


def _groups(budget: Budget, columns: int) -> Tensor | None:
    """The number of each column's group in an N:M pattern; None for other patterns."""
    if not isinstance(budget.pattern, NOfM):
        return None
    column, kernel = torch.arange(columns, device=budget.alive.device), math.prod(budget.kernel)
    return column // (kernel * budget.pattern.m) * kernel + column % kernel


def _chooser(name: str) -> Solver:
    """The solver that chooses the first masks.

    Raises:
        ValueError: The pruner needs gradients, scores whole units, or exchanges weights itself.
    """
    method = build_method(name, {})
    if isinstance(method, Ranking):
        score = method.score
        if isinstance(score, Score) and not isinstance(score, GradientScore):
            return _ByWeights(score)
    elif not isinstance(method, DSnoT | GradientSolver | ReaderSolver):
        return method
    raise ValueError(
        f"start is '{name}': choose a pruner that reads inputs or weights alone, such as wanda, "
        "sparsegpt, ria or magnitude"
    )


class _ByWeights(Solver):
    """A score of weights alone, as a solver."""

    def __init__(self, by: Score) -> None:
        super().__init__()
        self.by = by

    def init(self, weight: Tensor) -> Sums:
        """Nothing."""
        return {}

    def see(self, sums: Sums, inputs: Tensors) -> None:
        """Nothing."""

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """The score of each weight."""
        return self.by.score(self.by.init([weight]), [weight])[0]
