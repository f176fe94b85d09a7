"""A custom rule: keep a random sample in which large weights are more likely."""

from collections.abc import Sequence

import torch
from torch import Tensor

import seven_exp
from seven_exp.pruning.criteria.magnitude import Magnitude


@seven_exp.register("sampled", when="after", schedule="one_shot")
def sampled(*, temperature: float = 1.0, seed: int = 0) -> seven_exp.Ranking:
    """Keeps a sample of the weights, drawn by magnitude; pruned weights do not return."""
    return seven_exp.Ranking(Magnitude(), Sampled(temperature, seed))


class Sampled(seven_exp.Rule):
    """Draws without replacement, with probabilities proportional to score^(1 / temperature).

    The k largest of log score / temperature + Gumbel noise are such a sample (Kool et al., arXiv
    1903.06059).
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self.temperature, self.seed = temperature, seed

    def rank(
        self,
        scores: Sequence[Tensor],
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        moment: seven_exp.Moment,
    ) -> list[Tensor]:
        """Perturbed logarithms of the scores."""
        generator = torch.Generator().manual_seed(self.seed)
        return [
            score.log() / self.temperature - _exponential(score, generator).log()
            for score in scores
        ]


def _exponential(like: Tensor, generator: torch.Generator) -> Tensor:
    """Exponential noise, whose negative logarithm is Gumbel noise."""
    noise = torch.empty(like.shape, dtype=like.dtype).exponential_(generator=generator)
    return noise.to(like.device)
