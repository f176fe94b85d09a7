"""Solvers: prune each weight matrix for the inputs that it multiplies, layer by layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from seven_exp.messages import nearest
from seven_exp.pruning.criteria.score import GradientScore
from seven_exp.pruning.patterns import Pattern, Units

Sums = dict[str, Tensor]
"""Running sums over one weight's inputs; "uses" is the number of inputs in each group."""

Order = Literal["blocks", "layers"]


@dataclass(frozen=True)
class Budget:
    """How many weights a layer may keep, and which.

    Attributes:
        density: Fraction of the layer's weights.
        pattern: Which sets of weights may be pruned together.
        kernel: Kernel size of a convolution, whose positions count as inputs; () for a linear map.
        alive: Bool (groups, outputs, inputs), the weights that are not yet pruned.
        best: ``best(scores)``: the mask that keeps the best of the alive weights, as many as the
            layer may keep; scores and mask are (groups, outputs, inputs).
        mask: The mask if layers have competed for it, same shape; None otherwise.
        attention: Whether the layer belongs to attention, or no layer of the model does.
        parts: Number of parts, in the order of the groups, that keep equally many weights: experts.
    """

    density: float
    pattern: Pattern
    kernel: tuple[int, ...]
    alive: Tensor
    best: Callable[[Tensor], Tensor]
    mask: Tensor | None = None
    attention: bool = True
    parts: int = 1


class Solver(ABC):
    """Prunes by sums over the layers' inputs on calibration batches, without gradients.

    All matrices are (groups, outputs, inputs), with the groups of a grouped convolution.

    Args:
        order: "blocks": all weights of a block use the inputs of the dense block, as in the
            authors' code of Wanda and SparseGPT. "layers": each layer uses inputs computed with the
            layers before it pruned.
    """

    order: Order = "blocks"
    copies = 2
    """At most so many times the size of its sums `solve` holds besides them, for memory plans."""

    def __init__(self, *, order: Order = "blocks") -> None:
        if order not in get_args(Order):
            raise ValueError(f"unknown order '{order}': {nearest(order, get_args(Order))}")
        self.order = order

    def check(self, pattern: Pattern) -> None:  # noqa: B027  most solvers fit all patterns
        """Raise ValueError, with the reason, if the solver does not fit the pattern."""

    @abstractmethod
    def init(self, weight: Tensor) -> Sums:
        """Empty sums.

        Args:
            weight: (groups, outputs, inputs), in the scores' precision.
        """

    @abstractmethod
    def see(self, sums: Sums, inputs: Sequence[Tensor]) -> None:
        """Add the inputs of one batch.

        Args:
            sums: Sums of one weight.
            inputs: For each group (uses, inputs), in the scores' precision.
        """

    @abstractmethod
    def score(self, sums: Sums, weight: Tensor) -> Tensor:
        """The scores by which weights compete: (groups, outputs, inputs).

        Args:
            sums: Over all batches and ranks.
            weight: (groups, outputs, inputs), the present values.
        """

    def solve(self, sums: Sums, weight: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
        """Prune one weight; by default the best scores stay, with their values.

        Args:
            sums: Over all batches and ranks. What is not needed any more may be removed.
            weight: (groups, outputs, inputs), the present values.
            budget: What the layer may keep.

        Returns:
            The mask, bool, and the new weight; the caller sets what the mask prunes to zero.
        """
        if budget.mask is not None:
            return budget.mask, weight
        return budget.best(self.score(sums, weight)), weight


class ReaderSolver(Solver):
    """A solver that scores a unit by the weights that read it, not by those that make it.

    It needs a pattern whose units span several weights.

    Attributes:
        moves_biases: Whether `shift` is added to the biases of the reading layers.
    """

    moves_biases: bool

    def check(self, pattern: Pattern) -> None:
        """Only units that span several weights have readers."""
        if not (isinstance(pattern, Units) and pattern.spans_weights):
            kind = type(self).__name__.lower()
            raise ValueError(
                f"{kind} scores heads and neurons by the columns that read them, which pattern "
                f"'{pattern}' does not remove: choose pattern coupled"
            )

    @abstractmethod
    def shift(self, sums: Sums, weight: Tensor, gone: Tensor) -> Tensor:
        """What the reading layer's outputs lose on average: (groups, outputs).

        Args:
            sums: Over all batches and ranks.
            weight: (groups, outputs, inputs), the values before pruning.
            gone: Bool (groups, inputs), the inputs that are pruned now.
        """


class RegionalSolver(Solver):
    """A solver that also reads gradients within each block, taken as the block is reached."""

    @abstractmethod
    def see_gradient(self, sums: Sums, gradient: Tensor) -> None:
        """Add the gradient of one batch.

        Args:
            sums: Sums of one weight.
            gradient: Of the Euclidean norm of the block's outputs, the blocks before it pruned:
                (groups, outputs, inputs), in the scores' precision. The block of a weight outside
                all blocks is the module that uses it.
        """


class GradientSolver(Solver):
    """A solver that also reads gradients, taken on all batches before any weight is pruned."""

    @abstractmethod
    def gradients(self) -> GradientScore:
        """What to compute from the gradients.

        Its scores are ``sums["gradients"]`` of each weight: (groups, outputs, inputs).
        """
