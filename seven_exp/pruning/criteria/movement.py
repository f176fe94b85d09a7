"""Movement: keep the weights that training moves away from zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion
from seven_exp.pruning.registry import register


@register("movement", when="during", schedule="cubic", scope="per_layer")
class Movement(Criterion):
    """S descends along dL/dS = (dL/dW') * w, straight through the mask in W' = w * mask(S).

    (Sanh et al., "Movement pruning", arXiv 2005.07683, eqs. 1 and 2.) w is the weight of the
    forward pass, before the optimizer moves it. Scores learn as parameters do, by Adam with a rate
    of their own and no decay. A weight's value is remembered while it is pruned, and it may return;
    the loss has no gradient for it meanwhile.

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
        slope = self.slope(weights, grads)
        torch._foreach_lerp_(mean, slope, 1 - self.betas[0])
        torch._foreach_mul_(square, self.betas[1])
        torch._foreach_addcmul_(square, slope, slope, 1 - self.betas[1])
        root = torch._foreach_div(square, 1 - self.betas[1] ** t)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, 1e-8)
        torch._foreach_addcdiv_(score, mean, root, -self.lr / (1 - self.betas[0] ** t))

    def slope(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """dL/dS; the weights are those of the forward pass."""
        return list(torch._foreach_mul(list(grads), [weight.detach() for weight in weights]))

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """S."""
        return self.zeros("score", weights)


@register("soft_movement", when="during", schedule="cubic")
class SoftMovement(Movement):
    """Keeps sigmoid(S) > tau, with lambda times the mean sigmoid(S) of a layer added to the loss.

    (Sanh et al., arXiv 2005.07683, section 4 and eq. 5.) The sparsity comes of itself, by lambda;
    the one asked for is the most that is pruned. tau and lambda rise from 0 along the window as the
    cubic schedule does. There is one threshold for all layers: scope "global" leaves it so.

    Args:
        lr: Of the scores.
        betas: Of Adam, for the scores.
        tau: Final threshold, in [0, 1).
        penalty: Final lambda.
    """

    def __init__(
        self,
        *,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        tau: float = 0.1,
        penalty: float = 400.0,
    ) -> None:
        super().__init__(lr=lr, betas=betas)
        if not 0 <= tau < 1:
            raise ValueError(f"tau is {tau}: choose a number in [0, 1)")
        if penalty < 0:
            raise ValueError(f"penalty is {penalty}: choose 0 or more")
        self.tau, self.penalty = tau, penalty

    def slope(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """dL/dS and the penalty's: lambda sigmoid'(S) / (weights of the layer * layers)."""
        slopes = super().slope(weights, grads)
        strength = self.penalty * self.numbers.get("rise", 0.0) / len(weights)
        for slope, score in zip(slopes, self.zeros("score", weights), strict=True):
            chance = score.sigmoid()
            slope.addcmul_(chance, 1 - chance, value=strength / score.numel())
        return slopes

    def ceiling(self, progress: float) -> float:
        """The fraction at or below the threshold; without evidence, no bound."""
        rise = self.numbers["rise"] = 1 - (1 - progress) ** 3
        if "t" not in self.numbers:
            return 1.0
        scores = self.state["score"]
        below = sum(int((score.sigmoid() <= self.tau * rise).sum()) for score in scores)
        return below / sum(score.numel() for score in scores)
