"""FLAP: how much the output fluctuates because of an input; what it gives on average is a bias."""

import torch
from torch import Tensor

from seven_exp.pruning.criteria.score import Tensors
from seven_exp.pruning.criteria.solver import Order, ReaderSolver, Sums
from seven_exp.pruning.registry import register


@register("flap", when="after", schedule="one_shot")
class Flap(ReaderSolver):
    """Var(X_j) ||W_:j||^2, standardised over the inputs of each layer; W E[X] of the pruned to b.

    A head's or a neuron's score is the mean over the inputs that read it; heads and neurons of all
    layers compete (An et al., "Fluctuation-based adaptive structured pruning for large language
    models", arXiv 2312.11983: WIFV, AL-AM). The statistics are those of the dense model.

    Args:
        bias: Whether the biases make up for what pruned inputs gave on average.
        order: See `Solver`.
    """

    def __init__(self, *, bias: bool = True, order: Order = "blocks") -> None:
        super().__init__(order=order)
        self.moves_biases = bias

    def init(self, weight: Tensor) -> Sums:
        """Two sums per input."""
        zeros = torch.zeros_like(weight[:, 0], dtype=torch.float64)
        return {"sum": zeros, "sum of squares": zeros.clone()}

    def see(self, sums: Sums, inputs: Tensors) -> None:
        """Sum x_j and x_j^2."""
        sums["sum"] += torch.stack([x.double().sum(0) for x in inputs])
        sums["sum of squares"] += torch.stack([x.double().square().sum(0) for x in inputs])

    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """(s_j - mean s) / std s, with s_j = Var(X_j) ||W_:j||^2."""
        n = sums["uses"].double().unsqueeze(1)
        variance = (sums["sum of squares"] - sums["sum"].square() / n) / (n - 1).clamp(min=1)
        s = variance.clamp(min=0) * weight.double().square().sum(1)
        standard = (s - s.mean()) / s.std().clamp(min=torch.finfo(s.dtype).tiny)
        return standard.to(weight.dtype).unsqueeze(1).expand_as(weight)

    def shift(self, sums: Sums, weight: Tensor, gone: Tensor) -> Tensor:
        """W E[X] over the pruned inputs."""
        means = sums["sum"] / sums["uses"].double().unsqueeze(1) * gone
        return torch.einsum("goi,gi->go", weight.double(), means)
