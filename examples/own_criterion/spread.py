"""A criterion of your own: keep the weights that are large for their gradient's spread."""

from collections.abc import Sequence

import torch
from torch import Tensor

import seven_exp


@seven_exp.register("spread_pre", when="before", rounds=20)
@seven_exp.register("spread_dyn", when="during", schedule="cubic")
class Spread(seven_exp.Criterion):
    """|w| / (sqrt(E[g^2]) + eps), the mean decayed by ``decay``."""

    uses_gradients = True

    def __init__(self, *, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay

    def update(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Take in a batch's gradients."""
        mean = self.zeros("mean", weights)
        torch._foreach_mul_(mean, self.decay)
        torch._foreach_addcmul_(mean, list(grads), list(grads), 1 - self.decay)

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """One score a weight; the largest are kept."""
        pairs = zip(weights, self.zeros("mean", weights), strict=True)
        return [weight.detach().abs() / (mean.sqrt() + 1e-8) for weight, mean in pairs]
