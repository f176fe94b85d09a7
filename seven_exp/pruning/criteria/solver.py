"""What a solver is: it judges each weight by the inputs that it multiplies, layer after layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from seven_exp.pruning.patterns import Pattern
from seven_exp.registry import nearest

Sums = dict[str, Tensor]
"""What is known of one weight's inputs, beside how many there were in each group, as "uses"."""

Order = Literal["blocks", "layers"]


@dataclass(frozen=True)
class Budget:
    """What a layer may keep.

    Attributes:
        density: Fraction of the layer's weights.
        pattern: Which sets of weights may go together.
        kernel: Lengths of a convolution's kernel, whose places are inputs; () of a linear map.
        alive: Bool (groups, outputs, inputs), what has not been pruned before.
        best: ``best(scores)``: the mask that keeps the best of those alive, as many as the layer
            may keep; scores and mask are (groups, outputs, inputs).
        mask: What is chosen already, where layers have competed; likewise.
    """

    density: float
    pattern: Pattern
    kernel: tuple[int, ...]
    alive: Tensor
    best: Callable[[Tensor], Tensor]
    mask: Tensor | None = None


class Solver(ABC):
    """Looks at layers' inputs alone, without gradients: sums over calibration batches.

    All matrices are (groups, outputs, inputs), with groups as of a grouped convolution.

    Args:
        order: "blocks": all weights of a block are judged by their inputs in the dense block, as
            the authors of Wanda and SparseGPT do; "layers": each behind the pruned ones before it.
    """

    def __init__(self, *, order: Order = "blocks") -> None:
        if order not in get_args(Order):
            raise ValueError(f"unknown order '{order}': {nearest(order, get_args(Order))}")
        self.order = order

    @abstractmethod
    def init(self, weight: Tensor) -> Sums:
        """Sums of nothing.

        Args:
            weight: (groups, outputs, inputs), in the scores' precision.
        """

    @abstractmethod
    def see(self, sums: Sums, inputs: Sequence[Tensor]) -> None:
        """Add the inputs of one batch.

        Args:
            sums: Of one weight.
            inputs: For each group (uses, inputs), in the scores' precision.
        """

    @abstractmethod
    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """What weights compete by: (groups, outputs, inputs).

        Args:
            sums: Over all batches and ranks.
            weight: (groups, outputs, inputs), as it is now.
        """

    def solve(self, sums: Sums, weight: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
        """Prune one weight: by default the best scores stay, with their values.

        Args:
            sums: Over all batches and ranks.
            weight: (groups, outputs, inputs), as it is now.
            budget: What it may keep.

        Returns:
            The mask, bool, and the weight; what the mask prunes is set to zero afterwards.
        """
        if budget.mask is not None:
            return budget.mask, weight
        return budget.best(self.score(sums, weight)), weight
