"""Pruning by solvers: captures the inputs of each layer, then solves the layer for them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from seven_exp.pruning.allocation import Pool
from seven_exp.pruning.competition import Competition, Wanted
from seven_exp.pruning.criteria.score import precision
from seven_exp.pruning.criteria.solver import Budget, ReaderSolver, RegionalSolver, Solver, Sums
from seven_exp.pruning.evidence import NoEvidenceError, no_evidence, unfrozen
from seven_exp.pruning.inputs import uses_of
from seven_exp.pruning.layers import Layer
from seven_exp.pruning.layerwise import Hold, Run, capturing, inference, used_again, walk
from seven_exp.pruning.masks import Masks
from seven_exp.pruning.matrices import widths
from seven_exp.pruning.replicas import Group, as_of_one, average
from seven_exp.pruning.structure import attention_of, blocks_of

View = Callable[[Tensor], Tensor]
"""A tensor of a weight's shape as (groups, outputs, inputs)."""


@dataclass
class Solving:
    """One round of a solver on a model.

    Attributes:
        name: Name of the pruner, for messages.
        model: Runs with the blocks pruned so far.
        solver: Scores and solves weights by their inputs.
        competition: The layers, and how many of their weights stay.
        masks: The layers' masks; updated as the layers are solved.
        wanted: Maps a layer's target to its present sparsity.
        group: Ranks with replicas of the model, each with its own batches.
        gradients: The scores of `GradientSolver.gradients`, one tensor per layer.
        hold: See `walk`; None: all weights exist all the time.
        done: Names of layers that were solved earlier.
    """

    name: str
    model: nn.Module
    solver: Solver
    competition: Competition
    masks: Masks
    wanted: Wanted
    group: Group | None
    gradients: Sequence[Tensor] = ()
    hold: Hold | None = None
    done: Collection[str] = ()

    def __post_init__(self) -> None:
        self._layers = self.competition.layers
        self._uses = {i: use for i, use in enumerate(uses_of(self.model, self._layers)) if use}
        self._attention = attention_of(self.model)
        self._sums: dict[int, Sums] = {}
        self.unused: set[int] = set()
        """Layers that stay dense because no batch calls their modules."""

    def run(self, runs: Sequence[Run]) -> None:
        """Solve block by block, each for its inputs with the earlier blocks pruned.

        Layers that compete across blocks are measured in the dense model first, and so are weights
        that modules share or that a model without blocks uses repeatedly.

        Args:
            runs: One forward pass per batch.

        Raises:
            NoEvidenceError: All scores of a layer are equal or broken, or its inputs determine no
                solution; layers solved before it stay pruned.
        """
        blocks = blocks_of(self.model) if self.solver.order == "blocks" else []
        forward = self._forward if isinstance(self.solver, RegionalSolver) else None
        with inference(self.model, [layer.weight.device for layer in self._layers]):
            self._measure(runs)
            first = self._across(blocks) | {i for i, use in self._uses.items() if use.others}
            first |= set() if blocks else used_again(self._uses, runs[0])
            if first:
                across = {i: self._uses[i] for i in first}
                with capturing(across, self._see):
                    for run in runs:
                        run()
                if forward is not None:
                    for _ in walk(across, blocks, runs, _ignore, self.hold, forward=forward):
                        pass
                self._solve(sorted(first))
            first |= {i for i in self._uses if self._layers[i].name in self.done}
            later = {i: use for i, use in self._uses.items() if i not in first}
            walked = walk(later, blocks, runs, self._see, self.hold, forward=forward)
            with closing(walked) as stages:
                for members in stages:
                    self._solve(members)

    def _measure(self, runs: Sequence[Run]) -> None:
        """Measure the dense model, if the scope depends on it."""
        squares: dict[int, Tensor] = {}

        def see(i: int, inputs: list[Tensor]) -> None:
            more = torch.stack([x.to(precision(x)).square().sum(0) for x in inputs])
            squares[i] = squares.get(i, 0) + more

        def scored(i: int) -> Tensor:
            weight, norms = self._layers[i].weight.detach(), squares[i].sqrt().unsqueeze(1)
            matrices = self._uses[i].matrices(weight, len(norms))
            return self._uses[i].weight(matrices.abs() * norms, weight.shape)

        if self.competition.measures_inputs:
            with capturing(self._uses, see):
                for run in runs:
                    run()
            average(list(squares.values()), self.group)
            self.unused |= set(range(len(self._layers))) - set(squares)
        self.competition = self.competition.measured(
            self.model, self.group, scored, without=self.unused
        )

    def _across(self, blocks: Sequence[nn.Module]) -> set[int]:
        """The layers that compete with layers outside their block."""
        block = {module: i for i, block in enumerate(blocks) for module in block.modules()}
        places = {i: block.get(use.module, use.module) for i, use in self._uses.items()}
        pools = [set(pool.layers) & set(self._uses) for pool in self._pools()]
        return {i for pool in pools if len({places[j] for j in pool}) > 1 for i in pool}

    def _pools(self) -> list[Pool]:
        return self.competition.pools(self.wanted, self.unused)

    def _see(self, i: int, inputs: list[Tensor]) -> None:
        """Add the inputs of weight i in one call: for each group (uses, inputs)."""
        if i not in self._sums:
            self._sums[i] = self._nothing(i, len(inputs))
        sums, dtype = self._sums[i], precision(self._layers[i].weight)
        sums["uses"] += sums["uses"].new_tensor([len(group) for group in inputs])
        self.solver.see(sums, [group.detach().to(dtype) for group in inputs])

    def _forward(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run a block, and show the solver the gradients of its weights."""
        assert isinstance(self.solver, RegionalSolver)
        inside = set(block.modules())
        members = [i for i, use in self._uses.items() if use.module in inside]
        weights = [self._layers[i].weight for i in members]
        with torch.enable_grad(), unfrozen(weights):
            found = tree_leaves(block.forward(*args, **kwargs))
            outputs = next(t for t in found if isinstance(t, Tensor) and t.requires_grad)
            norm = outputs.to(precision(outputs)).norm()
            grads = torch.autograd.grad(norm, weights, allow_unused=True)
        for i, grad in zip(members, grads, strict=True):
            if grad is not None and i in self._sums:
                sums = self._sums[i]
                matrices = self._uses[i].matrices(grad.to(precision(grad)), len(sums["uses"]))
                self.solver.see_gradient(sums, as_of_one(matrices, self.group))

    def _nothing(self, i: int, groups: int) -> Sums:
        weight = self._layers[i].weight.detach()
        matrices = self._uses[i].matrices(weight, groups).to(precision(weight))
        sums = {"uses": matrices.new_zeros(len(matrices)), **self.solver.init(matrices)}
        if self.gradients:
            sums["gradients"] = self._uses[i].matrices(self.gradients[i], groups)
        return sums

    def _solve(self, members: Sequence[int]) -> None:
        """Prune the layers whose inputs have been captured."""
        # Alone, nobody else has seen the others; and a weight that is not held has no values.
        seen = [i for i in members if i in self._sums or self.group is not None]
        known = {i: self._sums.pop(i) if i in self._sums else self._nothing(i, 1) for i in seen}
        average([tensor for sums in known.values() for tensor in sums.values()], self.group)
        known = {i: sums for i, sums in known.items() if sums["uses"].any()}
        for i, sums in known.items():
            if self._layers[i].stacked:
                self._see_for_idle(sums, widths(self._layers[i])[0])
        self.unused |= set(members) - set(known)
        for pool in self._pools():
            if known.keys() >= set(pool.layers):
                try:
                    with torch.no_grad():
                        self._prune(pool, {i: known.pop(i) for i in pool.layers})
                except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                    raise NoEvidenceError(
                        f"{self.name} can't solve {self._layers[pool.layers[0]].name}: some of its "
                        "inputs are sums of others; raise pruner.dampening or calibration.samples"
                    ) from error

    def _see_for_idle(self, sums: Sums, inputs: int) -> None:
        """Show each input once to experts that no batch has chosen: their weights alone decide."""
        idle = (sums["uses"] == 0).tolist()
        if any(idle):
            each = torch.eye(inputs, dtype=sums["uses"].dtype, device=sums["uses"].device)
            given = [each if one else each[:0] for one in idle]
            sums["uses"] += sums["uses"].new_tensor([len(group) for group in given])
            self.solver.see(sums, given)

    def _prune(self, pool: Pool, known: Mapping[int, Sums]) -> None:
        """Prune a pool; several layers compete by their scores and are then solved one by one."""
        weights = {i: self._layers[i].weight for i in pool.layers}
        views = {i: partial(self._uses[i].matrices, groups=len(known[i]["uses"])) for i in known}
        alive = dict(zip(weights, self.masks.some(pool.layers).unpacked(), strict=True))
        density = self.competition.kept(pool) / sum(w.numel() for w in weights.values())
        solver, together = self.solver, dict[int, Tensor]()
        if len(weights) > 1:
            matrices = {i: view(weights[i].detach()) for i, view in views.items()}
            ranks = {i: solver.score(known[i], matrix) for i, matrix in matrices.items()}
            together = self._best(pool, ranks, alive, self._judges)
        new = {}
        for i, view in views.items():

            def best(scores: Tensor, i: int = i, view: View = view) -> Tensor:
                return view(self._best(pool, {i: scores}, alive)[i])

            budget = Budget(
                density=density,
                pattern=self.competition.pattern,
                kernel=() if self._layers[i].stacked else tuple(weights[i].shape[2:]),
                alive=view(alive[i]),
                best=best,
                mask=view(together[i]) if together else None,
                attention=not self._attention or self._layers[i].module in self._attention,
                parts=pool.parts,
            )
            matrix = view(weights[i].detach())
            mask, moved = solver.solve(known[i], matrix, budget)
            if isinstance(solver, ReaderSolver) and solver.moves_biases and i in self._judges:
                gone = budget.alive.any(1) & ~mask.any(1)
                _add_to_bias(self._layers[i], solver.shift(known[i], matrix, gone))
            new[i] = self._uses[i].weight(mask, weights[i].shape)
            if moved is not matrix:
                weights[i].data.copy_(self._uses[i].weight(moved, weights[i].shape))
        part = self.masks.some(list(new))
        part.set(list(new.values()))
        self.masks.put(list(new), part)
        part.apply(list(weights.values()))

    @property
    def _judges(self) -> set[int]:
        """The layers whose scores alone decide about units; empty: all layers."""
        return self.competition.readers if isinstance(self.solver, ReaderSolver) else set()

    def _best(
        self,
        pool: Pool,
        ranks: Mapping[int, Tensor],
        alive: Mapping[int, Tensor],
        judges: Collection[int] = (),
    ) -> dict[int, Tensor]:
        """The masks that keep the best of a pool; ranks are (groups, outputs, inputs)."""
        shaped = {i: self._uses[i].weight(r, alive[i].shape).contiguous() for i, r in ranks.items()}
        # Scores may differ between ranks by rounding.
        average(list(shaped.values()), self.group)
        available = sum(self.masks.kept[i] for i in alive)
        best = self.competition.best(pool, shaped, alive, available, judges)
        if best is None:
            raise no_evidence(
                *(self.name, self.model, self._layers, self.masks.kept),
                *(pool, list(shaped.values()), True),
            )
        return best


def _ignore(i: int, inputs: list[Tensor]) -> None:
    pass


def _add_to_bias(layer: Layer, shift: Tensor) -> None:
    """Add what a layer's outputs have lost to its bias: (groups, outputs)."""
    bias = layer.module.bias
    assert isinstance(bias, nn.Parameter)
    bias.data += shift.flatten().to(bias)
