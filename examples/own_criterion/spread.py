"""A custom score: keep weights that are large and have large gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

import seven_exp
from seven_exp import State


@seven_exp.register("spread_pre", when="before", rounds=20)
@seven_exp.register("spread_dyn", when="during", schedule="cubic")
class Spread(seven_exp.GradientScore):
    """|w| * sqrt(E[g^2]), the mean decayed by ``decay``."""

    def __init__(self, *, decay: float = 0.9) -> None:
        self.decay = decay

    def init(self, weights: Sequence[Tensor]) -> State:
        """The initial mean: 0."""
        return State.zeros(weights, "mean")

    def update(self, state: State, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Add a batch's gradients to the mean."""
        torch._foreach_mul_(state["mean"], self.decay)
        torch._foreach_addcmul_(state["mean"], list(grads), list(grads), 1 - self.decay)

    def score(self, state: State, weights: Sequence[Tensor]) -> list[Tensor]:
        """One score per weight; the largest are kept."""
        pairs = zip(weights, state["mean"], strict=True)
        return [weight.detach().abs() * mean.sqrt() for weight, mean in pairs]
