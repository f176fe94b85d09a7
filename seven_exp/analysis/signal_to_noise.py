"""Signal to noise of each weight's gradient, by SEVEN's definition and by the classical one."""

from collections.abc import Sequence

import torch
from torch import Tensor

MEASURES = ("snr", "direction")
"""Names of the ratios of `Moments.ratios`."""


class Moments:
    """Running means of each weight's |g|, g and g^2, with bias correction.

    With gradients g_0, ..., g_t, a mean of decay alpha weights g_i by alpha^(t-i) and divides by
    the sum of these weights; alpha = 1 is the plain mean. SEVEN's m^ and v^ are the means of |g|
    with alpha_1 and of g^2 with alpha_2 (arXiv 2403.12688).

    Args:
        alpha_1: Decay of the mean of |g|, in [0, 1].
        alpha_2: Decay of the means of g and g^2, in [0, 1].
    """

    def __init__(self, alpha_1: float = 0.8, alpha_2: float = 0.9) -> None:
        self.alpha_1, self.alpha_2 = alpha_1, alpha_2
        self.t = 0
        self.state: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def update(self, grads: Sequence[Tensor]) -> None:
        """Add one step's gradients.

        Args:
            grads: One tensor per layer, float32 or wider, finite. They may be overwritten.
        """
        for name in ("size", "value", "square"):
            if name not in self.state:
                self.state[name] = [torch.zeros_like(grad) for grad in grads]
        grads = list(grads)
        slow = newest_share(self.alpha_2, self.t)
        torch._foreach_lerp_(self.state["value"], grads, slow)
        torch._foreach_abs_(grads)
        torch._foreach_lerp_(self.state["size"], grads, newest_share(self.alpha_1, self.t))
        torch._foreach_mul_(grads, grads)
        torch._foreach_lerp_(self.state["square"], grads, slow)
        self.t += 1

    @torch.no_grad()
    def ratios(self) -> dict[str, list[Tensor]]:
        """Two ratios of a weight's mean gradient to its root mean square, one tensor per layer.

        ``snr`` is SEVEN's m^ / sqrt(v^), without its constant 1e-9, with the mean of |g|. It is 1
        if the gradient's magnitude is constant and sqrt(2 / pi) = 0.80 for normal noise around
        zero, because it ignores signs. Its two means have different decays, so it may exceed 1, for
        the paper's decays by up to 18%.

        ``direction`` is |mean of g|: 1 if the gradient is constant and near 0 for noise. The
        classical signal-to-noise ratio |E g| / std g is d / sqrt(1 - d^2) of it.

        Both are NaN before any nonzero gradient: 0 / 0 is not a measurement.
        """
        size, value, square = (self.state[name] for name in ("size", "value", "square"))
        found: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
        for m, e, v in zip(size, value, square, strict=True):
            scale = torch.where(v > 0, v, torch.nan).rsqrt()
            found["snr"].append(m * scale)
            found["direction"].append(e.abs() * scale)
        return found


def newest_share(alpha: float, t: int) -> float:
    """The weight of sample t, counted from 0, in a corrected running mean of decay alpha."""
    return 1 / (t + 1) if alpha == 1 else (1 - alpha) / (1 - alpha ** (t + 1))
