"""One step of SEVEN's recurrence: the tensors that a pass over memory works on, and its numbers."""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class SevenStep(NamedTuple):
    """The operands of a step of SEVEN's recurrence, `seven_exp.pruning.criteria.seven.Seven`.

    Attributes:
        weights: One tensor per layer, of any floating dtype.
        grads: Same shapes; only read. NaN and infinity count as 0.
        m: Mean of |g|, same shapes. A narrower dtype than that of the scores rounds it after each
            step.
        v: Mean of g^2, same shapes and dtype.
        score: S, float32 or wider.
        unit: The unit of the gradients.
        alphas: Decays of ``m`` and ``v``.
        t: Index of the step, from 0.
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
    def kind(self) -> str:
        """The dtype of the moments, which ends the names of the compiled functions."""
        return str(self.m[0].dtype).removeprefix("torch.")

    @property
    def tensors(self) -> tuple[Sequence[Tensor], ...]:
        """The five sequences of tensors."""
        return self[:5]

    def factors(self) -> "ctypes.Array[Any]":
        """The step's constants, in the order of fused.c."""
        (alpha_1, alpha_2), t = self.alphas, self.t
        factors = (
            *(1 / self.unit, alpha_1, 1 - alpha_1, alpha_2, 1 - alpha_2),
            *((1 - alpha_2 ** (t + 1)) ** -0.5, 1 / (1 - alpha_1 ** (t + 1))),
        )
        return (ctypes.c_float * len(factors))(*factors)
