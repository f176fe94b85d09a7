"""Movement: keep the weights that training moves away from zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion
from seven_exp.pruning.registry import register


@register("movement", when="during", schedule="cubic", scope="per_layer")
class Movement(Criterion):
    """S descends along dL/dS = (dL/dW') * w, straight through the mask in W' = w * mask(S).

    (Sanh et al., "Movement pruning", arXiv 2005.07683, eqs. 1 and 2.) Scores learn as parameters
    do, by Adam with a rate of their own and no decay. A weight's value is remembered while it is
    pruned, and it may return.

    Args:
        lr: Of the scores.
        betas: Of Adam, for the scores.
    """

    uses_gradients = True
    revival = "remembered"

    def __init__(self, *, lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__()
        if lr <= 0:
            raise ValueError(f"lr is {lr}: choose a positive number")
        self.lr, self.betas = lr, (float(betas[0]), float(betas[1]))

    def update(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """One Adam step on the scores."""
        score, mean, square = (self.zeros(n, weights) for n in ("score", "mean", "square"))
        t = self.numbers["t"] = self.numbers.get("t", 0) + 1
        slope = torch._foreach_mul(list(grads), [weight.detach() for weight in weights])
        torch._foreach_lerp_(mean, slope, 1 - self.betas[0])
        torch._foreach_mul_(square, self.betas[1])
        torch._foreach_addcmul_(square, slope, slope, 1 - self.betas[1])
        root = torch._foreach_div(square, 1 - self.betas[1] ** t)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, 1e-8)
        torch._foreach_addcdiv_(score, mean, root, -self.lr / (1 - self.betas[0] ** t))

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """S."""
        return self.zeros("score", weights)
