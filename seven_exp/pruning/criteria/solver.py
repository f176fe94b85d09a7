"""What a solver is: a criterion that judges each weight by the inputs that it multiplies."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from seven_exp.pruning.criteria.base import Criterion, precision
from seven_exp.pruning.inputs import Use
from seven_exp.registry import nearest

State = dict[str, Tensor]
"""What is known of one weight's inputs, beside how many there were in each group, as "uses"."""

Order = Literal["blocks", "layers"]


class Solver(Criterion):
    """Looks at layers' inputs alone, without gradients: sums over calibration batches.

    Subclasses implement `init` and `see`, and in `solve` turn the sums into what `scores`, `rank`
    and `compensate` need.

    Args:
        order: "blocks": all weights of a block are judged by their inputs in the dense block, as
            the authors of Wanda and SparseGPT do; "layers": each behind the pruned ones before it.
    """

    uses_gradients = True
    only_before = True

    def __init__(self, *, order: Order = "blocks") -> None:
        super().__init__()
        if order not in get_args(Order):
            raise ValueError(f"unknown order '{order}': {nearest(order, get_args(Order))}")
        self.order = order

    def init(self, weight: Tensor) -> State:
        """Sums of nothing.

        Args:
            weight: (groups, outputs, inputs), in the scores' precision; groups as of a grouped
                convolution.
        """
        raise NotImplementedError

    def see(self, state: State, inputs: Sequence[Tensor]) -> None:
        """Add the inputs of one batch.

        Args:
            state: Of one weight.
            inputs: For each group (uses, inputs), in the scores' precision.
        """
        raise NotImplementedError

    def solve(self, uses: Sequence[Use], weights: Sequence[Tensor], states: list[State]) -> None:
        """Take over what is known of some weights, which `scores` and the others are then for.

        Args:
            uses: Where each weight is used, which says how it becomes matrices.
            weights: As they are now.
            states: One for each; sums over all batches, and ranks.
        """
        raise NotImplementedError


class Gathered:
    """What a solver knows of the inputs of some weights.

    Args:
        solver: Adds them up.
        uses: Number of a weight -> where it is used.
        weights: Number of a weight -> the weight.
    """

    def __init__(
        self, solver: Solver, uses: Mapping[int, Use], weights: Mapping[int, Tensor]
    ) -> None:
        self._solver, self._uses, self._weights = solver, uses, weights
        self._states: dict[int, State] = {}

    def see(self, i: int, inputs: list[Tensor]) -> None:
        """Add what weight i multiplies in one call: for each group (uses, inputs)."""
        if i not in self._states:
            self._states[i] = self._empty(i, len(inputs))
        state, dtype = self._states[i], precision(self._weights[i])
        state["uses"] += torch.tensor([len(group) for group in inputs]).to(state["uses"])
        self._solver.see(state, [group.detach().to(dtype) for group in inputs])

    def take(self, members: Sequence[int]) -> dict[int, State]:
        """Hand over the states of some weights, as means over the ranks; those with inputs only."""
        states = {
            i: self._states.pop(i) if i in self._states else self._empty(i, 1) for i in members
        }
        self._solver.averaged([tensor for state in states.values() for tensor in state.values()])
        return {i: state for i, state in states.items() if state["uses"].any()}

    def _empty(self, i: int, groups: int) -> State:
        weight = self._weights[i].detach()
        matrices = self._uses[i].matrices(weight, groups).to(precision(weight))
        return {"uses": matrices.new_zeros(groups), **self._solver.init(matrices)}
