"""Wanda: weights times the norms of their input activations."""

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import Tensors
from seven_exp.pruning.criteria.solver import Solver, Sums
from seven_exp.pruning.registry import register


@register("wanda", when="after", schedule="one_shot", scope="per_row")
class Wanda(Solver):
    """|W_ij| * ||X_j||_2, compared within each output row (Sun et al., arXiv 2306.11695, eq. 1).

    X_j is input j over the calibration batches. The inputs are captured block by block, as in the
    authors' code, unless ``order`` is "layers". Layers that compete across blocks are all measured
    in the dense model.
    """

    def init(self, weight: Tensor) -> Sums:
        """One sum per input."""
        return {"squares": torch.zeros_like(weight[:, 0])}

    def see(self, sums: Sums, inputs: Tensors) -> None:
        """Sum x_j^2."""
        sums["squares"] += torch.stack([x.square().sum(0) for x in inputs])

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """|W_ij| ||X_j||."""
        return weight.abs() * sums["squares"].sqrt().unsqueeze(1)
