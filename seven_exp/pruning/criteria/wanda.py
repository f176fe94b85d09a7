"""Wanda: weights times the activations they meet."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning.criteria.solver import Solver, State
from seven_exp.pruning.inputs import Use
from seven_exp.pruning.registry import register


@register("wanda", when="after", schedule="one_shot", scope="per_row")
class Wanda(Solver):
    """|W_ij| * ||X_j||_2, compared within each output row (Sun et al., arXiv 2306.11695, eq. 1).

    X_j is input j over the calibration batches. Block by block as the authors, unless ``order`` is
    "layers"; layers that compete across blocks are all measured in the dense model.
    """

    def init(self, weight: Tensor) -> State:
        """One sum for each input."""
        return {"squares": torch.zeros_like(weight[:, 0])}

    def see(self, state: State, inputs: Sequence[Tensor]) -> None:
        """Sum x_j^2."""
        state["squares"] += torch.stack([x.square().sum(0) for x in inputs])

    def solve(self, uses: Sequence[Use], weights: Sequence[Tensor], states: list[State]) -> None:
        """||X_j||, for each weight of its column."""
        self.state["norm"] = []
        for use, weight, state in zip(uses, weights, states, strict=True):
            norm = state["squares"].sqrt().unsqueeze(1)
            columns = norm.expand_as(use.matrices(weight, len(norm)))
            self.state["norm"].append(use.weight(columns, weight.shape))

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """|W_ij| ||X_j||."""
        return [
            w.detach().abs() * norm for w, norm in zip(weights, self.state["norm"], strict=True)
        ]
