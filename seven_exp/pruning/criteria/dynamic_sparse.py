"""Sparse from the start to the end: SET and RigL drop small weights and grow others."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion, magnitudes, precision
from seven_exp.pruning.evidence import constant
from seven_exp.pruning.registry import register
from seven_exp.pruning.select import top_k_masks


class _DropAndGrow(Criterion):
    """At each update a falling fraction of each layer's smallest |w| makes room for others.

    The fraction is ``drop (1 + cos(pi progress)) / 2``; grown weights start at zero, their
    moments in the optimizer cleared. The first mask is random.

    Args:
        drop: Fraction dropped at the first update, in (0, 1).
        seed: Of the first mask and of random growth.
    """

    revival = "zero"
    starts_sparse = True

    def __init__(self, *, drop: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        if not 0 < drop < 1:
            raise ValueError(f"drop is {drop}: choose a number between 0 and 1")
        self.drop, self.seed = drop, seed

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The random order of the first mask."""
        return self._draw(weights, 0)

    def rank(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], progress: float, density: float
    ) -> list[Tensor]:
        """Survivors first, then the rest in the order of growth.

        A layer in which all weights or all candidates for growth are alike exchanges none.
        """
        fraction = self.drop * (1 + math.cos(math.pi * progress)) / 2
        self.numbers["updates"] = self.numbers.get("updates", 0) + 1
        sizes, growths = magnitudes(weights), self._growth(weights)
        stay = [_stay(fraction, *layer) for layer in zip(sizes, masks, growths, strict=True)]
        if density * sum(mask.numel() for mask in masks) < sum(stay) - 0.5:
            # A rising schedule leaves no room for growth, nor for all that would stay.
            return [size.masked_fill(~mask, -1.0) for size, mask in zip(sizes, masks, strict=True)]
        ranked = []
        for size, mask, growth, count in zip(sizes, masks, growths, stay, strict=True):
            (survivors,) = top_k_masks([size], count, [mask])
            ranked.append((growth / growth.max().clamp(min=1e-38)).masked_fill(survivors, 2.0))
        return ranked

    def _growth(self, weights: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def _draw(self, weights: Sequence[Tensor], number: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return [
            torch.rand(w.shape, generator=generator, dtype=precision(w), device="cpu").to(w.device)
            for w in weights
        ]


def _stay(fraction: float, size: Tensor, mask: Tensor, growth: Tensor) -> int:
    """How many of a layer's weights are not dropped: all, where nothing tells which or for what."""
    alive = int(mask.sum())
    alike = constant(size, mask) or (alive < mask.numel() and constant(growth, ~mask))
    return alive if alike else alive - int(fraction * alive)


@register("set", when="during", schedule="constant", scope="erk")
class Set(_DropAndGrow):
    """Grows at random (Mocanu et al., arXiv 1707.04780)."""

    def _growth(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return self._draw(weights, int(self.numbers["updates"]))


@register("rigl", when="during", schedule="constant", scope="erk")
class Rigl(_DropAndGrow):
    """Grows where the dense gradient is largest (Evci et al., arXiv 1911.11134)."""

    uses_gradients = True

    def update(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Remember |g| of the step of the update."""
        self.state["gradient"] = list(torch._foreach_abs(list(grads)))

    def rank(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], progress: float, density: float
    ) -> list[Tensor]:
        """The same; all equal before there is a gradient."""
        if "gradient" not in self.state:
            return [torch.zeros_like(magnitude) for magnitude in magnitudes(weights)]
        return super().rank(weights, masks, progress, density)

    def _growth(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return self.state["gradient"]
