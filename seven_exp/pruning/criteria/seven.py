"""SEVEN: reserve the sentinels, the weights whose gradient noise is small."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.messages import nearest
from seven_exp.pruning.bounds import below_one
from seven_exp.pruning.criteria.score import (
    Elementwise,
    OnePassScore,
    State,
    Tensors,
    cleaned,
)
from seven_exp.pruning.kernels import fused
from seven_exp.pruning.kernels.one_pass import seven_and_best
from seven_exp.pruning.kernels.seven_step import SevenStep
from seven_exp.pruning.masks import Masks
from seven_exp.pruning.registry import register
from seven_exp.pruning.replicas import Group
from seven_exp.pruning.shards import summed

_MOMENTS = ("float32", "bfloat16")

_SPACE = {"alpha_1": "interval(0.5,0.95)", "alpha_2": "interval(0.5,0.99)"}


@register("seven_pre", when="before", schedule="cubic", rounds=100, space=_SPACE)
@register("seven_dyn", when="during", schedule="cubic", space=_SPACE)
class Seven(Elementwise, OnePassScore):
    """Sum over the steps of |w g| times the gradient's signal-to-noise factor.

    With a = |g / u| at step t = 0, 1, ... (Xiao et al., "SEVEN: Pruning Transformer Model by
    Reserving Sentinels", IJCNN 2024, arXiv 2403.12688)::

        m = alpha_1 m + (1 - alpha_1) a        m^ = m / (1 - alpha_1^(t+1))
        v = alpha_2 v + (1 - alpha_2) a^2      v^ = v / (1 - alpha_2^(t+1))
        S = S + |w a m^ / (sqrt(v^) + 1e-9)|

    m^ / sqrt(v^) is near 1 if the gradient's magnitude is steady, and small if it is noisy.

    The unit u makes the scores independent of the scale of the loss, which the constant 1e-9 would
    otherwise prevent. It is the power of two that brings the root mean square of the first gradient
    nearest to 2^-8. Dividing by a power of two is exact, and u is 1 for the gradients with which
    the authors' implementation was recorded.

    Args:
        alpha_1: Decay of the mean of |g|, in [0, 1).
        alpha_2: Decay of the mean of g^2, in [0, 1).
        moments: Dtype of m and v: "float32", or "bfloat16", which rounds them after each step and
            saves 4 of 12 bytes per weight.
    """

    def __init__(
        self, *, alpha_1: float = 0.8, alpha_2: float = 0.9, moments: str = "float32"
    ) -> None:
        if moments not in _MOMENTS:
            raise ValueError(f"moments is '{moments}': {nearest(moments, _MOMENTS)}")
        below_one(alpha_1=alpha_1, alpha_2=alpha_2)
        self.alpha_1, self.alpha_2, self.moments = alpha_1, alpha_2, moments

    def init(self, weights: Tensors) -> State:
        """M = v = S = 0."""
        state = State.zeros(weights, "m", "v", "score")
        if self.moments == "bfloat16":
            for name in ("m", "v"):
                state.tensors[name] = [torch.zeros_like(w, dtype=torch.bfloat16) for w in weights]
        return state

    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """One step of the recurrence above."""
        self.observe(state, weights, grads)

    def observe(self, state: State, weights: Tensors, grads: Sequence[Tensor | None]) -> None:
        """The same without a copy: the pass over memory cleans the gradients while reading them."""
        if step := self._step(state, weights, grads):
            fused.seven(step)

    def observe_and_choose(
        self, state: State, weights: Tensors, grads: Sequence[Tensor | None], masks: Masks, k: int
    ) -> bool:
        """Both in one pass over memory, if there is a compiled one."""
        # A subclass may override update or score.
        if type(self) is not Seven:
            self.observe(state, weights, grads)
            return False
        step = self._step(state, weights, grads)
        return step is not None and seven_and_best(step, masks, k)

    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """S."""
        return state["score"]

    def _step(
        self, state: State, weights: Tensors, grads: Sequence[Tensor | None]
    ) -> SevenStep | None:
        """The next step; None as long as all gradients are zero."""
        seen = [
            torch.zeros_like(weight) if grad is None else grad.detach()
            for weight, grad in zip(weights, grads, strict=True)
        ]
        unit = state.numbers.get("unit") or unit_of(cleaned(seen, weights), state.shards)
        if unit == 0:
            return None
        t = int(state.numbers.get("t", 0))
        state.numbers.update(unit=unit, t=t + 1)
        m, v, score = (state[name] for name in ("m", "v", "score"))
        return SevenStep(weights, seen, m, v, score, unit, (self.alpha_1, self.alpha_2), t)


def unit_of(grads: Tensors, shards: Group | None = None) -> float:
    """The unit u: the power of two nearest to 2^8 times the gradients' root mean square.

    Args:
        grads: One finite tensor per layer.
        shards: Ranks that hold the other rows of the gradients.

    Returns:
        The unit; 0 if all gradients are zero.
    """
    norms = torch._foreach_norm(list(grads), dtype=torch.float64)
    squares = sum(float(norm) ** 2 for norm in norms)
    own = [squares, sum(grad.numel() for grad in grads)]
    sums = torch.tensor(own, dtype=torch.float64, device="cpu")
    squares, number = summed(sums, shards, grads[0].device).tolist()
    rms = math.sqrt(squares / number)
    return 2.0 ** round(math.log2(rms) + 8) if rms > 0 else 0.0
