"""A rule of your own: keep a sample, in which a large weight is likelier than a small one."""

from collections.abc import Sequence

import torch
from torch import Tensor

import seven_exp
from seven_exp.pruning.criteria.magnitude import Magnitude


@seven_exp.register("sampled", when="after", schedule="one_shot")
def sampled(*, temperature: float = 1.0, seed: int = 0) -> seven_exp.Ranking:
    """Magnitudes, of which a sample is kept; pruned weights stay gone."""
    return seven_exp.Ranking(Magnitude(), Sampled(temperature, seed))


class Sampled(seven_exp.Rule):
    """Draws without replacement, with probabilities in proportion to score^(1 / temperature).

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
