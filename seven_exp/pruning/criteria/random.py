"""Random: the floor that every criterion must beat."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion, precision
from seven_exp.pruning.registry import register


@register("random", when="before", schedule="one_shot")
class Random(Criterion):
    """U(0, 1), drawn once, so that gradual pruning is nested.

    Args:
        seed: Of the draw; runs with another seed prune other weights.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The draw, made on the CPU so that every device prunes the same weights."""
        if "score" not in self.state:
            generator = torch.Generator().manual_seed(self.seed)
            self.state["score"] = [
                torch.rand(w.shape, generator=generator, dtype=precision(w), device="cpu").to(
                    w.device
                )
                for w in weights
            ]
        return self.state["score"]
