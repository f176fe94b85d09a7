"""One step of SEVEN's recurrence: the tensors that a pass over memory works on, and its numbers."""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class SevenStep(NamedTuple):
    """What a step of SEVEN's recurrence works on, `seven_exp.pruning.criteria.seven.Seven`.

    Attributes:
        weights: One tensor a layer, of any floating dtype.
        grads: Likewise; read only. NaN and infinity count as 0.
        m: Mean of |g|, shaped like the weights; a narrower dtype than the scores' rounds it
            between steps.
        v: Mean of g^2, likewise.
        score: S, float32 or wider.
        unit: What gradients are measured in.
        alphas: Decays of ``m`` and ``v``.
        t: Which step it is, from 0.
    """

    weights: Sequence[Tensor]
    grads: Sequence[Tensor]
    m: Sequence[Tensor]
    v: Sequence[Tensor]
    score: Sequence[Tensor]
    unit: float
    alphas: tuple[float, float]
    t: int

    @property
    def tensors(self) -> tuple[Sequence[Tensor], ...]:
        """The five sequences."""
        return self[:5]

    def factors(self) -> "ctypes.Array[Any]":
        """The numbers that the step is made with, in the order in which sweeps.c names them."""
        (alpha_1, alpha_2), t = self.alphas, self.t
        factors = (
            *(1 / self.unit, alpha_1, 1 - alpha_1, alpha_2, 1 - alpha_2),
            *((1 - alpha_2 ** (t + 1)) ** -0.5, 1 / (1 - alpha_1 ** (t + 1))),
        )
        return (ctypes.c_float * len(factors))(*factors)
