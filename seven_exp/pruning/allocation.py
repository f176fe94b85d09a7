"""Allocation: how a total sparsity is divided among the layers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from seven_exp.pruning.matrices import Stack
from seven_exp.pruning.select import kept_count
from seven_exp.registry import Registry

Shape = Sequence[int]
"""(outputs, inputs, *kernel) of a weight."""


class Pool(NamedTuple):
    """Layers whose weights compete with one another.

    Attributes:
        layers: Their indices, in ascending order.
        kept: Number of weights to keep in total; with ``each_row``, in every output row; with
            ``parts``, in every part.
        each_row: Whether weights compete only within their output row.
        by_share: Whether weights compete by `lamp_shares` of their scores, so that layers of
            different scales are comparable.
        more: With ``each_row``, the number of rows that keep one more weight: those whose next
            weight has the highest scores. With ``parts``, the number of parts, the first ones.
        parts: Number of parts of the pool's only layer that do not compete: the experts in a stack.
    """

    layers: list[int]
    kept: int
    each_row: bool = False
    by_share: bool = False
    more: int = 0
    parts: int = 1

    @property
    def together(self) -> "Pool":
        """The pool with parts that compete."""
        if self.parts == 1:
            return self
        return self._replace(kept=self.kept * self.parts + self.more, more=0, parts=1)


Scope = Callable[[float, Sequence[Shape]], list[Pool]]
"""``scope(density, shapes)``: the pools for layers of these shapes."""


@dataclass(frozen=True)
class Measured:
    """A scope in which a measurement of the dense model decides how much each block keeps.

    All layers of a block get the block's number; a layer outside all blocks gets its own.

    Attributes:
        measure: The number of a block, from one tensor for each of its layers: (outputs, inputs),
            or (experts, outputs, inputs).
        densities: ``densities(density, sizes, numbers)``: each layer's density, from its size and
            its number. They may lie outside [0, 1]; `exact_counts` makes the total exact.
        of_inputs: Whether the tensors are |W_ij| ||X_j||_2, with X the inputs in the dense model,
            which takes a forward pass; otherwise they are the weights.
    """

    measure: Callable[[Sequence[Tensor]], float]
    densities: Callable[[float, Sequence[int], Sequence[float]], list[float]]
    of_inputs: bool


SCOPES: Registry[Scope | Measured] = Registry("scope")


@SCOPES.register("global")
def one_pool(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """All weights compete: the total is exact, and each layer's density follows from its scores."""
    return [_whole(density, shapes)]


@SCOPES.register("per_layer")
def per_layer(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """Every layer, and every expert, keeps the same fraction of its own weights."""
    return [_apart(i, density, shape) for i, shape in enumerate(shapes)]


@SCOPES.register("per_row")
def per_row(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """Every output row (a neuron's or a channel's weights) keeps the same number, up to one.

    Every layer keeps ``int(density * n)``.
    """
    return [
        _in_rows(i, kept_count(density, math.prod(shape)), shape[0])
        for i, shape in enumerate(shapes)
    ]


@SCOPES.register("lamp")
def lamp(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """All weights compete by their LAMP ratio, which is computed from any score.

    The total is exact, and every layer's best weight has the same ratio, 1 (Lee et al., arXiv
    2010.07611, with any score in place of the magnitude).
    """
    return [_whole(density, shapes)._replace(by_share=True)]


def _apart(layer: int, density: float, shape: Shape) -> Pool:
    """A layer that competes with no other, nor its experts with one another."""
    parts = _matrices(shape)
    return Pool([layer], kept_count(density, math.prod(shape) // parts), parts=parts)


def _in_parts(layer: int, kept: int, shape: Shape) -> Pool:
    each, more = divmod(kept, parts := _matrices(shape))
    return Pool([layer], each, more=more, parts=parts)


def _in_rows(layer: int, kept: int, rows: int) -> Pool:
    each, more = divmod(kept, rows)
    return Pool([layer], each, each_row=True, more=more)


def _whole(density: float, shapes: Sequence[Shape]) -> Pool:
    return Pool(list(range(len(shapes))), kept_count(density, sum(map(math.prod, shapes))))


@SCOPES.register("erk")
def erdos_renyi_kernel(density: float, shapes: Sequence[Shape]) -> list[Pool]:
    """Larger layers are made sparser (Mocanu et al., 1707.04780; kernels: Evci et al., 1911.11134).

    A layer's density is ``min(1, eps * sum(shape) / prod(shape))``; eps is solved so that the total
    is right. Each expert in a stacked weight counts as one matrix. Each layer keeps
    ``int(density * n)``, so the total falls short by less than one weight per layer.
    """
    densities = erk_densities(density, shapes)
    return [
        _apart(i, share, shape)
        for i, (share, shape) in enumerate(zip(densities, shapes, strict=True))
    ]


def erk_densities(density: float, shapes: Sequence[Shape]) -> list[float]:
    """Each layer's density; layers that would exceed 1 are dense and eps is solved for the rest."""
    sizes = [math.prod(shape) for shape in shapes]
    sides = [_sides(shape) for shape in shapes]
    wanted = density * sum(sizes)
    dense: set[int] = set()
    while len(dense) < len(shapes):
        sparse = [i for i in range(len(shapes)) if i not in dense]
        # A sparse matrix keeps eps * sum(shape) weights.
        eps = (wanted - sum(sizes[i] for i in dense)) / sum(sides[i] for i in sparse)
        full = {i for i in sparse if eps * sides[i] >= sizes[i]}
        if not full:
            break
        dense |= full
    return [
        1.0 if i in dense else eps * side / size
        for i, (side, size) in enumerate(zip(sides, sizes, strict=True))
    ]


def _sides(shape: Shape) -> int:
    """The sum of the dimensions; each matrix of a stack counts separately."""
    return sum(shape) + (_matrices(shape) - 1) * shape[1]


def _matrices(shape: Shape) -> int:
    """The number of matrices in a weight: of a stack its experts, else 1."""
    return shape.copies if isinstance(shape, Stack) else 1


def measured_pools(
    scope: Measured,
    density: float,
    shapes: Sequence[Shape],
    numbers: Sequence[float],
    *,
    each_row: bool,
) -> list[Pool]:
    """The pools of a measured scope: the layers, or their rows.

    Args:
        scope: Tells each layer's density.
        density: Of all layers together; the total is exact.
        shapes: Of the layers.
        numbers: Of the layers' blocks.
        each_row: Whether weights compete within their output row.
    """
    sizes = [math.prod(shape) for shape in shapes]
    counts = exact_counts(scope.densities(density, sizes, numbers), sizes, density)
    pairs = zip(counts, shapes, strict=True)
    if not each_row:
        return [_in_parts(i, count, shape) for i, (count, shape) in enumerate(pairs)]
    return [_in_rows(i, count, shape[0]) for i, (count, shape) in enumerate(pairs)]


def exact_counts(densities: Sequence[float], sizes: Sequence[int], density: float) -> list[int]:
    """Number of weights that each layer keeps: `kept_count` of the density in total.

    If densities lie outside [0, 1], they are clipped, and all others are shifted by the same amount
    so that the total stays. Fractions of a weight go to the layers with the largest ones.
    """
    total = kept_count(density, sum(sizes))

    def shifted(by: float) -> list[float]:
        return [min(1.0, max(0.0, d + by)) * n for d, n in zip(densities, sizes, strict=True)]

    low, high = -max(densities, default=0.0), 1 - min(densities, default=0.0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shifted(middle)) < total else (low, middle)
    exact = shifted(high)
    counts = [int(count) for count in exact]
    by_fraction = sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])
    for i in by_fraction[: total - sum(counts)]:
        counts[i] += 1
    return counts


def outlier_share(block: Sequence[Tensor]) -> float:
    """The share of a block's |W_ij| ||X_j||_2 that exceeds 5 times their mean."""
    size = sum(score.numel() for score in block)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in block) / size
    return sum(int((score > _OUTLIER * mean).sum()) for score in block) / size


def owl_densities(density: float, sizes: Sequence[int], shares: Sequence[float]) -> list[float]:
    """Linear in the share of outliers: 2 lambda = 0.16 from the lowest to the highest share."""
    places = _places(shares)
    mean = sum(p * n for p, n in zip(places, sizes, strict=True)) / sum(sizes)
    return [density + 2 * _LAMBDA * (place - mean) for place in places]


def hill_exponent(block: Sequence[Tensor]) -> float:
    """The mean over a block's layers of the power-law exponent of their spectrum.

    With the n eigenvalues of W^T W in ascending order and k = n // 2, the exponent is
    1 + k / (sum over i = 1 .. k of ln(l_(n-i+1) / l_(n-k))).
    """
    return sum(map(_hill, block)) / len(block)


def alpha_densities(
    density: float, sizes: Sequence[int], exponents: Sequence[float]
) -> list[float]:
    """Sparsities proportional to numbers from 1 - tau to 1 + tau, linear in the exponent."""
    ratios = [1 + _TAU * (2 * place - 1) for place in _places(exponents)]
    whole = sum(ratio * n for ratio, n in zip(ratios, sizes, strict=True)) / sum(sizes)
    return [1 - (1 - density) * ratio / whole for ratio in ratios]


_OUTLIER, _LAMBDA, _TAU = 5, 0.08, 0.3
"""M and lambda of OWL (arXiv 2310.05175, sec. 4.1), tau of AlphaPruning's code."""

OWL = Measured(outlier_share, owl_densities, of_inputs=True)
"""Blocks with more outliers keep more (Yin et al., arXiv 2310.05175, eqs. 1 and 2)."""

ALPHA = Measured(hill_exponent, alpha_densities, of_inputs=False)
"""Blocks with heavier-tailed spectra keep more (Lu et al., arXiv 2410.10912, eqs. 1 and 2)."""

SCOPES.add("owl", OWL)
SCOPES.add("alpha", ALPHA)


def _places(numbers: Sequence[float]) -> list[float]:
    """Where each number lies from the lowest, 0, to the highest, 1; 1/2 if all are equal."""
    low, high = min(numbers), max(numbers)
    return [(x - low) / (high - low) if high > low else 0.5 for x in numbers]


def _hill(weight: Tensor) -> float:
    """The exponent of one matrix, or the mean over a stack of them."""
    values = torch.linalg.svdvals(weight.detach().float()).square().flip(-1)
    n = values.shape[-1]
    if n < 2:
        return 1.0
    logs = values.clamp(min=torch.finfo(values.dtype).tiny).log()
    k = n // 2
    gaps = (logs[..., n - k :] - logs[..., n - k - 1 : n - k]).sum(-1)
    return float((1 + k / gaps.clamp(min=1e-6)).mean())


def lamp_shares(score: Tensor, candidates: Tensor | None = None) -> Tensor:
    """s^2 / (sum of r^2 over the layer's r with r^2 >= s^2), in the order of the scores.

    (Lee et al., arXiv 2010.07611, eq. 1.)

    Args:
        score: Of any shape. If some scores are negative, the lowest one is subtracted from all.
            NaN and infinite scores get 0.
        candidates: Bool, same shape: the weights that compete. None: all of them.
    """
    broken = ~score.isfinite()
    score = score.masked_fill(broken, 0)
    lifted = (score - score.min().clamp(max=0)).masked_fill(broken, 0)
    if candidates is not None:
        lifted = lifted * candidates
    # Scaling by a power of two is exact and keeps squares from underflowing.
    lifted = torch.ldexp(lifted, -torch.frexp(lifted.max()).exponent.clamp(min=-100))
    squares, order = lifted.flatten().square().sort(descending=True, stable=True)
    shares = squares / squares.cumsum(0).clamp(min=1e-38)
    return shares.new_empty(shares.shape).scatter_(0, order, shares).view_as(score)
