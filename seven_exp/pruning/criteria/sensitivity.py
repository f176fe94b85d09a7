"""Sensitivity: SEVEN taken apart, with evidence, memory, noise factor and regrowth as settings."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from seven_exp.messages import nearest
from seven_exp.pruning.bounds import below_one
from seven_exp.pruning.criteria.score import Elementwise, GradientScore, State, Tensors
from seven_exp.pruning.criteria.seven import unit_of
from seven_exp.pruning.method import Ranking
from seven_exp.pruning.registry import register
from seven_exp.pruning.regrowth import Regrowth, Remembered, StayGone, StraightThrough

_EVIDENCE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weight": lambda w, g: w.abs(),
    "taylor": lambda w, g: (w * g).abs(),
    "squared": lambda w, g: (w * g).square(),
    "signed": lambda w, g: g,
}
"""Name -> e of a layer's weights and gradients."""

_MEMORY = ("last", "average", "sum")
_REGROWTH: Mapping[str, type[Regrowth]] = {
    "none": StayGone,
    "remembered": Remembered,
    "straight_through": StraightThrough,
}


class NoiseFactor(NamedTuple):
    """SEVEN's signal-to-noise factor f = m^ / sqrt(v^), as it enters the sum.

    Attributes:
        power: The exponent p of f. SEVEN has 1, Taylor 0; a negative one prefers noisy gradients.
        alphas: Decays of the means of |g| and g^2, each in [0, 1).
    """

    power: float
    alphas: tuple[float, float]


@register("sensitivity_pre", when="before", schedule="cubic", rounds=100)
@register("sensitivity_dyn", when="during", schedule="cubic")
def sensitivity(
    *,
    evidence: str = "taylor",
    memory: str = "sum",
    decay: float = 0.9,
    power: float = 1.0,
    shuffled: bool = False,
    alphas: tuple[float, float] = (0.8, 0.9),
    regrowth: str = "none",
) -> Ranking:
    """Keeps the highest S; the settings say which parts of SEVEN it has.

    With the defaults it is SEVEN, with ``power=0`` Taylor. It answers which part does the work, and
    is slower than the pruners whose formula it repeats.

    Args:
        evidence: What a step tells about a weight: "weight" |w|, "taylor" |w g|, "squared" (w g)^2,
            or "signed" g, whose signs cancel over the steps and which |w| multiplies at the end.
        memory: How steps are combined: the "last" one, a moving "average", or the "sum".
        decay: Decay of the moving average, in [0, 1).
        power: Exponent of the noise factor.
        shuffled: Permute the noise factor among the weights of each layer.
        alphas: Decays of the factor's means of |g| and g^2, each in [0, 1).
        regrowth: The value that a pruned weight returns with: "none" (it stays pruned),
            "remembered" or "straight_through".

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    for key, value, known in (
        ("evidence", evidence, tuple(_EVIDENCE)),
        ("memory", memory, _MEMORY),
        ("regrowth", regrowth, tuple(_REGROWTH)),
    ):
        if value not in known:
            raise ValueError(f"{key} is '{value}': {nearest(value, known)}")
    below_one(decay=decay)
    for alpha in alphas:
        below_one(alphas=alpha)
    factor = NoiseFactor(power, (float(alphas[0]), float(alphas[1])))
    kind = Shuffled if shuffled else Aligned
    score = kind(evidence, {"last": 0.0, "average": decay}.get(memory), factor)
    return Ranking(score, regrowth=_REGROWTH[regrowth])


class Sensitivity(GradientScore):
    """S = memory over the steps of e f^p, with e the evidence and f SEVEN's factor.

    With a = |g / u| and the unit u of SEVEN at step t = 0, 1, ...::

        m = alpha_1 m + (1 - alpha_1) a        m^ = m / (1 - alpha_1^(t+1))
        v = alpha_2 v + (1 - alpha_2) a^2      v^ = v / (1 - alpha_2^(t+1))
        f = max(m^ / (sqrt(v^) + 1e-9), 2^-10)
        e = |w|, |w a|, (w a)^2 or g / u
        A = e f^p                              last
        A = decay A + (1 - decay) e f^p        average
        A = A + e f^p                          sum

    S is A, or |w A| for signed evidence. The bound of f keeps negative powers finite where all
    gradients have been zero.

    Args:
        evidence: "weight", "taylor", "squared" or "signed".
        decay: Of the moving average; 0: only the last step counts; None: the sum.
        factor: The noise factor.
    """

    def __init__(self, evidence: str, decay: float | None, factor: NoiseFactor) -> None:
        self.evidence, self.decay, self.factor = evidence, decay, factor

    def init(self, weights: Tensors) -> State:
        """A = 0, and m = v = 0 if the factor counts."""
        return State.zeros(weights, "score", *(("m", "v") if self.factor.power else ()))

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """One step of the recurrence above."""
        unit = state.numbers.get("unit") or unit_of(grads, state.shards)
        if unit == 0:
            return
        t = int(state.numbers.get("t", 0))
        state.numbers.update(unit=unit, t=t + 1)
        for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            w, g, total = weight.detach().to(grad.dtype), grad / unit, state["score"][i]
            term = _EVIDENCE[self.evidence](w, g)
            if self.factor.power:
                term = term * self._factor(state["m"][i], state["v"][i], g.abs(), t, i)
            if self.decay is not None:
                total.mul_(self.decay)
                term = term * (1 - self.decay)
            total.add_(term)

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """S."""
        totals = state["score"]
        if self.evidence != "signed":
            return totals
        return [
            (w.detach() * total).abs().to(total.dtype)
            for w, total in zip(weights, totals, strict=True)
        ]

    def _factor(self, m: Tensor, v: Tensor, a: Tensor, t: int, layer: int) -> Tensor:
        """f^p of one layer at step ``t``, after the update of its means."""
        power, (alpha_1, alpha_2) = self.factor
        m.lerp_(a, 1 - alpha_1)
        v.lerp_(a.square(), 1 - alpha_2)
        mean, square = m / (1 - alpha_1 ** (t + 1)), v / (1 - alpha_2 ** (t + 1))
        return (mean / (square.sqrt() + 1e-9)).clamp_(min=2.0**-10).pow_(power)


class Aligned(Elementwise, Sensitivity):
    """Each weight has its own noise factor."""


class Shuffled(Sensitivity):
    """Each weight has the noise factor of another one of its layer, always the same one."""

    def _factor(self, m: Tensor, v: Tensor, a: Tensor, t: int, layer: int) -> Tensor:
        """f^p of one layer, permuted."""
        f = super()._factor(m, v, a, t, layer)
        generator = torch.Generator().manual_seed(layer)
        order = torch.randperm(f.numel(), generator=generator).to(f.device)
        return f.flatten()[order].view_as(f)
