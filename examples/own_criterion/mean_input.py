"""A custom solver: Wanda with the mean of |x| instead of its norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

import seven_exp


@seven_exp.register("mean_input", when="after", schedule="one_shot", scope="per_row")
class MeanInput(seven_exp.Solver):
    """|W_ij| * mean of |x_j| over the inputs of calibration batches."""

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        """One sum per input of each group."""
        return {"sizes": torch.zeros_like(weight[:, 0])}

    def see(self, sums: dict[str, Tensor], inputs: Sequence[Tensor]) -> None:
        """Add a batch's |x_j|."""
        sums["sizes"] += torch.stack([x.abs().sum(0) for x in inputs])

    def score(self, sums: dict[str, Tensor], weight: Tensor) -> Tensor:
        """One score per weight; the largest of each row are kept."""
        mean = sums["sizes"] / sums["uses"].unsqueeze(1)
        return weight.abs() * mean.unsqueeze(1)
