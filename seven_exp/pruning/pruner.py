"""The pruner: ties a criterion, a schedule and a scope to a model's weights."""

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from seven_exp.pruning.allocation import SCOPES, Pool
from seven_exp.pruning.check import Check, check_zeros, counterparts
from seven_exp.pruning.choose import choose_masks
from seven_exp.pruning.criteria.base import Criterion, LossFunction
from seven_exp.pruning.criteria.solver import Gathered, Solver
from seven_exp.pruning.evidence import NoEvidenceError, informative, likely_cause, undecidable
from seven_exp.pruning.identity import Anchors, Pulse
from seven_exp.pruning.inputs import Use, uses_of
from seven_exp.pruning.keywords import (
    check_optimizer,
    count,
    fraction,
    positive,
    refuse_unread,
)
from seven_exp.pruning.layers import Coverage, Layer, matches, survey, transposed, unwrap
from seven_exp.pruning.layerwise import inference, showing, used_again, walk
from seven_exp.pruning.masks import Masks, pack_bits, unpack_bits
from seven_exp.pruning.misfits import Misfits, misfits_of, settle, unserved
from seven_exp.pruning.name_patterns import check_patterns
from seven_exp.pruning.patterns import NOfM, parse_pattern
from seven_exp.pruning.registry import PRUNERS, PrunerSpec, When, check_when
from seven_exp.pruning.regrowth import regrowth_of
from seven_exp.pruning.replicas import average, group_of
from seven_exp.pruning.schedules import SCHEDULES, Schedule, course
from seven_exp.pruning.structure import blocks_of
from seven_exp.registry import nearest

T = TypeVar("T")

_COMPETITIVE = ("global", "lamp")
"""Scopes in which the scores decide how much each layer keeps."""


class Pruner:
    """Chooses masks on a schedule and keeps pruned weights at exactly zero.

    Made by `create_pruner`. A pruner that prunes *during* training acts in `step`; the others act
    in `prune`, after which `step` only keeps the masks applied.
    """

    def __init__(
        self,
        coverage: Coverage,
        criterion: Criterion,
        *,
        model: nn.Module,
        name: str,
        when: When,
        sparsity: float,
        sparsities: Mapping[str, float],
        schedule: str,
        window: Schedule | None,
        rounds: int,
        scope: str,
        pattern: str,
        min_density: float,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.coverage = coverage
        self.layers = coverage.layers
        self.criterion = criterion
        self.name, self.when, self.scope, self.pattern = name, when, scope, pattern
        self.target = sparsity
        self.curve, self.window, self.rounds = schedule, window, rounds
        self._min_density = min_density
        self._model = model
        self._units = criterion.pattern.units(self.layers)
        self._groups = _groups(self.layers, sparsity, sparsities)
        self._anchors, self._pulse = Anchors(model, self.layers), Pulse()
        self._t = 0
        self._unused: set[int] = set()
        of_rows = scope == "per_row" or criterion.pattern.counts_rows
        self._turned = {i for i, x in enumerate(self.layers) if of_rows and transposed(x)}
        self._warned_of_waiting = False
        self._masks = Masks(self._weights())
        self._sizes = [weight.numel() for weight in self._weights()]
        self._regrowth = regrowth_of(
            criterion.revival,
            self.layers,
            self._masks,
            optimizer,
            training=when == "during",
            watching=criterion.uses_gradients,
        )
        self._await_step()
        self._started = False

    @property
    def masks(self) -> dict[str, Tensor]:
        """Bool tensors keyed by parameter name, shaped like the weights; True = kept.

        They are kept as bits; what is returned are copies.
        """
        return self._named(self._masks.unpacked())

    @property
    def scores(self) -> dict[str, Tensor]:
        """The criterion's scores now, by parameter name; 0 where a weight is gone for good."""
        scores = self.criterion.scores(self._regrowth.dense())
        if self.criterion.revival == "never":
            masks = self._masks.unpacked()
            scores = [score * mask for score, mask in zip(scores, masks, strict=True)]
        return self._named(scores)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the prunable weights, now."""
        return 1 - sum(self._masks.kept) / sum(self._sizes)

    @property
    def layer_counts(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> (number of weights, number kept)."""
        return self._named(zip(self._sizes, self._masks.kept, strict=True))

    def start(self) -> None:
        """Take the model as it is now for the start of pruning.

        A pruner that is sparse from the start (SET, RigL) draws and applies its first masks, so
        that the first forward pass is sparse already. The first `step` or `prune` does the same
        where nobody has; before, and by creating a pruner, no weight is touched. Call it once the
        weights to start from are loaded, and not before `load_state_dict`.

        Raises:
            RuntimeError: A weight is not the model's any more.
        """
        self._look()
        before = self._masks.kept
        self._begin()
        self._warn_of_lost_layers(before, stacklevel=3)

    @torch.no_grad()
    def step(self) -> None:
        """Call after ``optimizer.step()`` and before ``zero_grad()``, like an LR scheduler.

        Inside the window it takes in the gradients and, where the schedule says so, chooses the
        masks anew; always it sets pruned weights back to zero. Outside `prune`, a step of a
        "before" pruner that has not finished its rounds counts as one of them.

        A step whose gradients are all zero, or all broken in some layer, is no evidence and is
        passed over. While nothing tells weights apart, the masks stay as they are, with one
        warning; the next choice is for the sparsity that the schedule wants by then.

        Raises:
            NoEvidenceError: The window ends, and nothing tells weights apart.
            RuntimeError: It needs gradients and there are none, or it needs `prune`, or a weight is
                not the model's any more.
        """
        self._look()
        if self._pulse.missing(self._weights()):
            warnings.warn(
                f"{self.name}: no weight has changed since the last step and none has a gradient; "
                "create the pruner for the model that is trained, not for a copy of it",
                stacklevel=3,
            )
        before = self._masks.kept
        self._act()
        self._await_step()
        self._pulse.note(self._weights())
        self._warn_of_lost_layers(before, stacklevel=4)

    def prune(
        self,
        batches: Iterable[Any] | None = None,
        loss_fn: LossFunction | None = None,
        *,
        batches_per_round: int | None = None,
        rounds: int | None = None,
    ) -> None:
        """Choose the masks outside training.

        Survivors keep their values, unless the criterion is one that moves them. Every round takes
        gradients on the next batches at the weights as masked so far, then raises the sparsity
        along the schedule. Parameters' ``.grad`` and the training mode are left as they are.

        Args:
            batches: What ``loss_fn`` takes, one each; begun again when they run out. Not needed
                by criteria that look at the weights alone.
            loss_fn: ``loss_fn(model, batch)`` -> scalar.
            batches_per_round: Default: all batches where there is one round, else one.
            rounds: How many of the pruner's rounds to do now, the others being left for later
                calls (iterative pruning with training in between). None: all, from the first.

        Raises:
            FloatingPointError: The loss of a batch is not finite.
            NoEvidenceError: Nothing tells weights apart, so the masks stay as they are.
            RuntimeError: This pruner acts during training, or a weight is not the model's any more.
            ValueError: The criterion needs batches and has none, or an argument is not valid.
        """
        if self.when == "during":
            raise RuntimeError(f"{self.name} prunes during training: call step() after each step")
        rounds = None if rounds is None else positive("rounds", rounds)
        if batches_per_round is not None:
            batches_per_round = positive("batches_per_round", batches_per_round)
        self._look()
        if not self.criterion.uses_gradients:
            batches, per_round = [None], 1
        elif batches is None or loss_fn is None:
            raise ValueError(f"{self.name} needs batches and a loss: prune(batches, loss_fn)")
        elif not callable(loss_fn):
            kind = type(loss_fn).__name__
            raise ValueError(f"loss_fn is a {kind}: give a function, prune(batches, loss_fn)")
        elif batches_per_round is None and self.rounds == 1:
            batches = list(batches)
            per_round = len(batches)
        else:
            per_round = batches_per_round or 1
        supply = iter(_endless(batches))
        if rounds is None or self.window is None or self._t >= self.rounds:
            self.window, self._t = Schedule(self.curve, 0, self.rounds), 0
        before = self._masks.kept
        self._begin()
        for _ in range(self.rounds if rounds is None else min(rounds, self.rounds - self._t)):
            chosen = list(itertools.islice(supply, max(1, per_round)))
            if isinstance(self.criterion, Solver) and loss_fn is not None:
                self._advance_by_inputs(self.criterion, chosen, loss_fn)
                continue
            if self.criterion.uses_gradients and loss_fn is not None:
                self._measure(chosen, loss_fn, range(len(self.layers)))
            with torch.no_grad():
                self._advance()
        self._warn_of_lost_layers(before, stacklevel=3)

    def apply(self, model: nn.Module | None = None) -> None:
        """Set every pruned weight to exactly zero.

        Args:
            model: A copy of the model, such as one with averaged weights, whose parameters are
                found by name; wrappers may put a prefix before it. None: the model itself.

        Raises:
            RuntimeError: A weight is not the model's any more.
            ValueError: The copy lacks a weight, or has it in another shape.
        """
        self._look()
        if model is not None:
            weights = list(counterparts(model, self.layers).values())
            self._masks.beside(weights).apply(weights)
        else:
            self._zero()

    def check(self, model: nn.Module | None = None) -> Check:
        """Count the zeros of the model, or of a copy of it, and hold them against the masks.

        Args:
            model: As for `apply`.

        Returns:
            Zeros by layer and of all parameters; ``check().ok`` says whether all pruned weights are
            zero, ``check().raise_for_mismatch()`` where not.

        Raises:
            RuntimeError: A weight is not the model's any more.
            ValueError: The copy lacks a weight, or has it in another shape.
        """
        self._look()
        if model is None:
            return check_zeros(self._model, self._named(self._weights()), self.masks)
        return check_zeros(unwrap(model), counterparts(model, self.layers), self.masks)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, numbers and strings; masks are packed to bits.

        The criterion's tensors are its own, which further steps change: copy what is to be kept.
        """
        return {
            "name": self.name,
            "settings": self._settings(),
            "target": self.target,
            "step": self._t,
            "started": self._started,
            "window": None if self.window is None else vars(self.window) | {},
            "masks": {name: pack_bits(mask) for name, mask in self.masks.items()},
            "state": {name: self._named(tensors) for name, tensors in self.criterion.state.items()},
            "numbers": dict(self.criterion.numbers),
            "memory": self._named(self._regrowth.dense()) if self._regrowth.keeps else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, on a model with the same prunable weights.

        The model's own state may be loaded before or after.

        Raises:
            RuntimeError: A weight is not the model's any more.
            ValueError: It is no pruner's state, or was saved by another pruner, for other weights
                or with other settings.
        """
        if not {"name", "masks"} <= set(state):
            raise ValueError("this is no pruner's state: give what pruner.state_dict() returned")
        self._look()
        if state["name"] != self.name or list(state["masks"]) != [
            layer.name for layer in self.layers
        ]:
            raise ValueError(f"the state of '{state['name']}' does not fit {self.name}'s weights")
        own = self._settings()
        for key, saved in state.get("settings", {}).items():
            if saved != own[key]:
                raise ValueError(f"the state's {key}: {saved}; this pruner's: {own[key]}")
        weights = self._weights()
        self.target, self._t = state["target"], state["step"]
        # Older states were saved by pruners that started when they were made.
        self._started = state.get("started", True)
        self.window = None if state["window"] is None else Schedule(**state["window"])
        self._masks.set(
            [
                unpack_bits(packed.to(weight.device), weight.shape)
                for packed, weight in zip(state["masks"].values(), weights, strict=True)
            ]
        )
        self.criterion.state = {
            name: [tensors[layer.name].to(layer.weight.device).clone() for layer in self.layers]
            for name, tensors in state["state"].items()
        }
        self.criterion.numbers = dict(state["numbers"])
        memory = state["memory"]
        if memory is not None:
            devices = {layer.name: layer.weight.device for layer in self.layers}
            self._regrowth.load([memory[n].to(device).clone() for n, device in devices.items()])
        self._zero()
        self._await_step()

    def _act(self) -> None:
        """What `step` does to the masks and the weights."""
        if self.window is None:
            return
        if self.criterion.only_before and self.when == "before" and self.window.covers(self._t):
            raise RuntimeError(f"{self.name} looks at the model itself: call prune() first")
        if self.when == "after":
            self._zero()
            return
        self._begin()
        if self.window.covers(self._t) and self.criterion.uses_gradients and self._observe():
            self._t += 1
            return
        try:
            self._advance()
        except NoEvidenceError as error:
            if self._t + 1 >= self.window.end:
                raise
            self._warn_of_waiting(str(error), stacklevel=5)
            self._move_on()

    def _await_step(self) -> None:
        """Tell the regrowth whether the step to come lies in the window."""
        self._regrowth.begin(self.window is not None and self.window.covers(self._t))

    def _look(self) -> None:
        """See whether the weights are still the model's, and follow them to another device."""
        self._anchors.check()
        devices = [weight.device for weight in self._weights()]
        if devices != [bits.device for bits in self._masks.bits]:
            self._follow(devices)

    def _follow(self, devices: Sequence[torch.device]) -> None:
        """Move all that lies beside the weights to where they are now.

        Raises:
            RuntimeError: They are on the meta device, or have come from it.
        """
        for layer, device, bits in zip(self.layers, devices, self._masks.bits, strict=True):
            if device != bits.device and "meta" in (device.type, bits.device.type):
                raise RuntimeError(
                    f"{layer.name} has moved from the {bits.device.type} to the {device.type} "
                    "device: create the pruner once the model holds its weights"
                )
        self._masks.bits = self._masks.beside(self._weights()).bits
        memory = self._regrowth.memory
        columns = [*self.criterion.state.values(), *([memory] if memory else [])]
        for column in columns:
            column[:] = [tensor.to(device) for tensor, device in zip(column, devices, strict=True)]

    @torch.no_grad()
    def _begin(self) -> None:
        """What is done once, when the weights to start from are there."""
        if self._started:
            return
        self._started = True
        if self.criterion.starts_sparse:
            draw = self.criterion.scores(self._weights())
            average(draw, self.criterion.group)
            pools = self._pools(lambda target: target)
            self._choose(pools, dict(enumerate(draw)), dict(enumerate(self._masks.unpacked())))
            self._zero()

    def _zero(self) -> None:
        """Set every pruned weight of the model to exactly zero."""
        self._regrowth.reclaim()
        if sum(self._masks.kept) < sum(self._sizes):
            self._masks.apply(self._weights())

    def _settings(self) -> dict[str, Any]:
        """What a state must have been saved with to make sense here."""
        targets = {i: target for target, members in self._groups.items() for i in members}
        return {
            "shapes": [list(weight.shape) for weight in self._weights()],
            "sparsities": [targets[i] for i in range(len(self.layers))],
            "schedule": self.curve,
            "scope": self.scope,
            "pattern": self.pattern,
        }

    def _plainly_kept(self) -> int | None:
        """How many weights this step keeps, if they are simply the best of those kept so far."""
        assert self.window is not None
        simple = (
            self.criterion.at_once
            and self.window.updates(self._t)
            and self.criterion.revival == "never"
            and self.pattern == "unstructured"
            and self._min_density == 0
            and self.criterion.group is None
        )
        pools = self._pools(self._wanted) if simple else []
        if len(pools) != 1 or pools[0].each_row or pools[0].by_share:
            return None
        return pools[0].kept

    def _observe(self) -> bool:
        """Let the criterion take in a step; whether it has pruned as well."""
        values, grads = self._regrowth.forward(), [weight.grad for weight in self._weights()]
        if all(grad is None for grad in grads):
            raise RuntimeError(
                f"{self.name} finds no gradient: call step() after backward() and before "
                "zero_grad(), and create the pruner for the model that is trained, not for a copy"
            )
        if not informative(grads):
            self._warn_of_waiting(
                f"{self.name} passes over a step whose gradients are all zero or broken: call "
                "step() before zero_grad(), and look for an overflow or an output layer of zeros",
                stacklevel=6,
            )
            return False
        k = self._plainly_kept()
        if k is None:
            self.criterion.observe(values, grads)
            return False
        return self.criterion.observe_and_choose(values, grads, self._masks, k)

    def _advance(self) -> None:
        """One step on: new masks if the schedule says so, and pruned weights back to zero."""
        assert self.window is not None
        if self.window.updates(self._t):
            self._update(self._pools(self._wanted))
            self._warn_of_ceiling()
        elif self.window.covers(self._t):
            self._regrowth.settle()
        self._move_on()

    def _move_on(self) -> None:
        self._t += 1
        self._zero()

    def _advance_by_inputs(
        self, solver: Solver, batches: Sequence[Any], loss_fn: LossFunction
    ) -> None:
        """One step on, block after block, each solved for its inputs behind the solved ones.

        What competes across blocks, and weights that a model without blocks uses again and again,
        are measured in the dense model before. Weights that no batch uses stay dense.
        """
        self._unused = set()
        concluded: dict[int, dict[str, Tensor]] = {}
        uses = {i: use for i, use in enumerate(uses_of(self._model, self.layers)) if use}
        weights = self._weights()
        blocks = blocks_of(self._model) if solver.order == "blocks" else []
        runs = [partial(loss_fn, self._model, batch) for batch in batches]
        gathered = Gathered(solver, uses, dict(enumerate(weights)))
        with inference(self._model, [weight.device for weight in weights]):
            first = self._across(uses, blocks)
            first |= set() if blocks else used_again(uses, runs[0])
            if first:
                with showing({i: uses[i] for i in first}, gathered.see):
                    for run in runs:
                        run()
                concluded |= self._solve(solver, sorted(first), gathered, uses)
            later = {i: use for i, use in uses.items() if i not in first}
            with closing(walk(later, blocks, runs, gathered.see)) as stages:
                for members in stages:
                    concluded |= self._solve(solver, members, gathered, uses)
        names = {name for state in concluded.values() for name in state}
        solver.state = {
            name: [
                concluded[i][name] if i in concluded else torch.zeros_like(weight.detach())
                for i, weight in enumerate(weights)
            ]
            for name in sorted(names)
        }
        self._t += 1
        self._warn_of_unused(stacklevel=4)

    def _across(self, uses: Mapping[int, Use], blocks: Sequence[nn.Module]) -> set[int]:
        """The layers that compete with others outside of their block."""
        block = {module: i for i, block in enumerate(blocks) for module in block.modules()}
        places = {i: block.get(use.module, use.module) for i, use in uses.items()}
        pools = [set(pool.layers) & set(uses) for pool in self._pools(self._wanted)]
        return {i for pool in pools if len({places[j] for j in pool}) > 1 for i in pool}

    def _solve(
        self, solver: Solver, members: Sequence[int], gathered: Gathered, uses: Mapping[int, Use]
    ) -> dict[int, dict[str, Tensor]]:
        """Prune the layers that have been measured; what the solver has concluded of each."""
        states = gathered.take(members)
        self._unused |= set(members) - set(states)
        concluded: dict[int, dict[str, Tensor]] = {}
        for pool in self._pools(self._wanted):
            if not states.keys() >= set(pool.layers):
                continue
            layers = [self.layers[i] for i in pool.layers]
            own = [states.pop(i) for i in pool.layers]
            with torch.no_grad():
                solver.solve([uses[i] for i in pool.layers], [x.weight for x in layers], own)
                self._update([pool])
                self._masks.some(pool.layers).apply([layer.weight for layer in layers])
            for place, i in enumerate(pool.layers):
                concluded[i] = {name: column[place] for name, column in solver.state.items()}
        return concluded

    def _measure(
        self, batches: Sequence[Any], loss_fn: LossFunction, members: Sequence[int]
    ) -> None:
        """Let the criterion look at the model with some of its layers; frozen ones are no bar."""
        weights, values = self._weights(), self._regrowth.dense()
        frozen = [weight for weight in weights if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            self.criterion.measure(
                self._model,
                [weights[i] for i in members],
                [values[i] for i in members],
                batches,
                loss_fn,
            )
        finally:
            for weight in frozen:
                weight.requires_grad_(False)

    def _update(self, pools: Sequence[Pool]) -> None:
        """New masks for the layers of some pools, and values where these change them."""
        assert self.window is not None
        members = sorted(i for pool in pools for i in pool.layers)
        everything = self._regrowth.dense()
        values = [everything[i] for i in members]
        masks = dict(zip(members, self._masks.some(members).unpacked(), strict=True))
        before = list(masks.values())
        rows = [self._shape(pool.layers[0])[0] for pool in pools]
        kept = sum(p.kept * (n if p.each_row else 1) for p, n in zip(pools, rows, strict=True))
        ranks = self.criterion.rank(
            values,
            before,
            self.window.progress(self._t),
            kept / sum(self._sizes[i] for i in members),
        )
        # Equal on all ranks but for what one of them may have drawn or rounded otherwise.
        average(ranks, self.criterion.group)
        after = list(self._choose(pools, dict(zip(members, ranks, strict=True)), masks).values())
        weights = [self.layers[i].weight for i in members]
        own = dict(zip(members, values, strict=True))
        self._regrowth.revive(before, after, own)
        compensated = self.criterion.compensate(values, before, after)
        if compensated is not None:
            for weight, value in zip(weights, compensated, strict=True):
                weight.data.copy_(value)
        self._regrowth.settle(own)

    def _wanted(self, target: float) -> float:
        """Sparsity wanted now of layers with a target."""
        assert self.window is not None
        asked = self.window.sparsity(self._t, target)
        return min(asked, self.criterion.ceiling(self.window.progress(self._t)))

    def _pools(self, wanted: Callable[[float], float]) -> list[Pool]:
        """Who competes for how many places, given the sparsity wanted of layers with a target."""
        pools = []
        for target, group in self._groups.items():
            members = [i for i in group if i not in self._unused]
            shapes = [self._shape(i) for i in members]
            pools += [
                pool._replace(layers=[members[i] for i in pool.layers])
                for pool in SCOPES[self.scope](1 - wanted(target), shapes)
            ]
        return pools

    def _shape(self, i: int) -> tuple[int, ...]:
        """(outputs, inputs, *kernel) of a layer, where what is asked for tells them apart."""
        shape = self.layers[i].shape
        return (shape[1], shape[0]) if i in self._turned else shape

    def _matrix(self, i: int, tensor: Tensor) -> Tensor:
        """A tensor shaped like a layer's weight, with the layer's `_shape`."""
        matrix = self.layers[i].matrix(tensor)
        return matrix.T.contiguous() if i in self._turned else matrix

    def _choose(
        self, pools: Sequence[Pool], ranks: Mapping[int, Tensor], masks: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """Masks anew for the pools' layers, of those given: the highest ranks are kept."""
        masks = dict(masks)
        for pool in pools:
            candidates, counts = [masks[i] for i in pool.layers], self._masks.kept
            if self.criterion.revival != "never":
                candidates, counts = [torch.ones_like(mask) for mask in candidates], self._sizes
            scores = [self._matrix(i, ranks[i]) for i in pool.layers]
            candidates = [
                self._matrix(i, mask) for i, mask in zip(pool.layers, candidates, strict=True)
            ]
            available = sum(counts[i] for i in pool.layers)
            if undecidable(scores, candidates, pool, available):
                raise NoEvidenceError(self._no_evidence(pool, scores))
            chosen = choose_masks(
                scores,
                candidates,
                pool,
                available=available,
                pattern=self.criterion.pattern,
                units=None if self._units is None else [self._units[i] for i in pool.layers],
                min_density=self._min_density,
            )
            for i, mask in zip(pool.layers, chosen, strict=True):
                masks[i] = (mask.T if i in self._turned else mask).reshape(masks[i].shape)
        part = self._masks.some(list(masks))
        part.set(list(masks.values()))
        self._masks.put(list(masks), part)
        return masks

    def _no_evidence(self, pool: Pool, scores: Sequence[Tensor]) -> str:
        """What is wrong where nothing tells a pool's weights apart."""
        first, *others = (self.layers[i].name for i in pool.layers)
        where = f"{first} and {len(others)} more" if others else first
        named = zip(self.layers, self._masks.kept, strict=True)
        lost = [layer.name for layer, kept in named if not kept]
        cause = likely_cause(self._model, lost, scores, self.criterion.uses_gradients)
        return (
            f"{self.name} can't choose what to prune of {where}, for all scores there are equal or "
            f"broken; likely cause: {cause}"
        )

    def _warn_of_waiting(self, reason: str, *, stacklevel: int) -> None:
        if not self._warned_of_waiting:
            warnings.warn(f"{reason}; the masks stay as they are", stacklevel=stacklevel)
        self._warned_of_waiting = True

    def _warn_of_ceiling(self) -> None:
        """Say at the window's end that the criterion's own bound lies below the sparsity."""
        assert self.window is not None
        if self._t + 1 >= self.window.end and self.criterion.ceiling(1.0) < self.target:
            warnings.warn(
                f"{self.name} ends at sparsity {self.sparsity:.3f} and not {self.target:.3f}: its "
                "own threshold prunes no more",
                stacklevel=6,
            )

    def _warn_of_unused(self, *, stacklevel: int) -> None:
        if len(self._unused) == len(self.layers):
            raise NoEvidenceError(
                f"{self.name} has seen no layer's inputs: the loss calls none of the model's layers"
            )
        if self._unused:
            names = [self.layers[i].name for i in sorted(self._unused)]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            warnings.warn(
                f"{', '.join(names[:3])}{more} stay dense: no batch calls their modules, so their "
                "inputs are unknown",
                stacklevel=stacklevel,
            )

    def _warn_of_lost_layers(self, before: Sequence[int], *, stacklevel: int) -> None:
        for layer, old, new in zip(self.layers, before, self._masks.kept, strict=True):
            if old and not new:
                cure = "a sparsity of its own"
                if self.scope in _COMPETITIVE and self._units is None:
                    cure = "a larger min_density" if self._min_density else "min_density"
                warnings.warn(
                    f"{layer.name} has lost all its weights; {cure} keeps some",
                    stacklevel=stacklevel,
                )

    def _named(self, values: Iterable[T]) -> dict[str, T]:
        """One value a layer, keyed by parameter name."""
        return {layer.name: value for layer, value in zip(self.layers, values, strict=True)}

    def _weights(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self.layers]


def create_pruner(
    name: str,
    model: nn.Module,
    *,
    sparsity: float,
    begin_step: int = 0,
    end_step: int | None = None,
    interval: int = 1,
    levels: int | None = None,
    rounds: int | None = None,
    when: When | None = None,
    schedule: str | None = None,
    scope: str | None = None,
    sparsities: Mapping[str, float] | None = None,
    pattern: str = "unstructured",
    min_density: float = 0.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    exclude_defaults: bool = True,
    misfits: Misfits = "error",
    optimizer: torch.optim.Optimizer | None = None,
    **hyperparameters: Any,
) -> Pruner:
    """A registered pruner for a model.

    Args:
        name: A registered name, such as "seven_dyn", "seven_pre" or "magnitude".
        model: Prunable weights are found in it; nothing in it is wrapped or renamed. Given as
            DistributedDataParallel, all ranks choose the same masks, by evidence of all batches.
        sparsity: Final fraction of zeros among the prunable weights, in [0, 1).
        begin_step: First call of `Pruner.step` at which it acts ("during" only).
        end_step: The masks are final after ``end_step`` calls of `Pruner.step`. For a "before"
            pruner the same as ``rounds``, of which it is enough to give one.
        interval: Steps from one choice of masks to the next ("during" only).
        levels: Stairs of the schedule ("during" only); default: as fine as the steps.
        rounds: Mask updates of a "before" or "after" pruner.
        when: "before", "during" or "after"; default: what the name stands for.
        schedule: Name of a curve; default: what the name stands for.
        scope: "global": all weights compete; "per_layer": each layer reaches the sparsity;
            "per_row", "lamp", "erk"; default: what the name stands for.
        sparsities: Name or pattern -> another sparsity for the layers that match, the first one
            counting. The layers of one sparsity are pruned by ``scope`` among themselves.
        pattern: "unstructured", "N:M", "RxC" blocks, "rows" or "heads".
        min_density: Every layer of n weights keeps at least ``int(min_density * n)``, in [0, 1);
            for scopes in which layers compete, "global" and "lamp".
        include: Names or patterns of what alone is pruned; see `survey`.
        exclude: Names or patterns of what stays dense, too; see `survey`.
        exclude_defaults: Whether output layers, embeddings, routers and adapters stay dense.
        misfits: What becomes of layers that the pruner, the scope or the pattern can't prune:
            "error", or "dense": they stay as they are, with a warning.
        optimizer: The one that trains the weights, not a wrapper of it. Methods whose weights may
            return treat its moments as their papers do: SET, RigL and AC/DC, which need it, clear
            them; movement and straight-through magnitude let it step on the dense weights.
        **hyperparameters: The criterion's own, such as ``alpha_1``.

    Raises:
        ValueError: A name, a number or a combination of them is not valid, or the pruner does not
            read a keyword; the message says which and names the nearest valid choice.
    """
    spec = PRUNERS[name]
    when = when or spec.when
    check_when(when)
    scope = scope or spec.scope
    SCOPES[scope]
    curve = schedule or spec.schedule
    SCHEDULES[curve]
    sparsities = dict(sparsities or {})
    given = {
        "begin_step": begin_step,
        "end_step": end_step,
        "interval": interval,
        "levels": levels,
        "rounds": rounds,
        "when": when,
        "schedule": curve,
        "scope": scope,
        "sparsities": sparsities,
        "pattern": pattern,
        "min_density": min_density,
        "optimizer": optimizer,
    }
    refuse_unread(name, when, curve, given, _defaults(spec))
    sparsity = fraction("sparsity", sparsity)
    min_density = fraction("min_density", min_density)
    begin_step, interval = count("begin_step", begin_step), count("interval", interval)
    end_step = None if end_step is None else count("end_step", end_step)
    levels = None if levels is None else count("levels", levels)
    rounds = None if rounds is None else count("rounds", rounds)
    sparsities = {key: fraction(f"sparsities['{key}']", own) for key, own in sparsities.items()}
    _check_floor(min_density, sparsity, pattern, scope)
    criterion = build_criterion(name, hyperparameters)
    if criterion.only_before and when == "during":
        raise ValueError(f"{name} looks at the model itself: choose when=before or when=after")
    if criterion.starts_sparse and when != "during":
        raise ValueError(f"{name} exchanges weights while they are trained: choose when=during")
    criterion.group, criterion.pattern = group_of(model), parse_pattern(pattern)
    rounds = _rounds(rounds, spec.rounds, end_step if when == "before" else None)
    window = None
    if when == "during":
        if end_step is None:
            raise ValueError(f"{name} prunes during training: give end_step")
        window = Schedule(curve, begin_step, end_step, interval, levels)
    elif when == "before":
        window = Schedule(curve, 0, rounds)

    coverage = survey(model, include, exclude, exclude_defaults=exclude_defaults)
    target = sparsity if spec.prunes else 0.0
    for own in sparsities.values():
        _check_floor(min_density, own, pattern, scope)
    for own in _groups(coverage.layers, target, sparsities):
        criterion.pattern.check(own, scope)
    frozen_too = criterion.uses_gradients and when == "during"
    if isinstance(criterion, Solver):
        coverage = settle(coverage, unserved(coverage.layers, criterion, scope), "dense")
    found = misfits_of(coverage.layers, criterion, scope, needs_gradients=frozen_too)
    coverage = settle(coverage, found, misfits)
    if when == "during":
        check_optimizer(name, optimizer, coverage.layers, needed=criterion.revival == "zero")
    if spec.prunes:
        _warn_of_curve(name, criterion, curve)
        if words := coverage.shortfall():
            warnings.warn(words, stacklevel=2)
    return Pruner(
        coverage,
        criterion,
        model=unwrap(model),
        name=name,
        when=when,
        sparsity=target,
        sparsities=sparsities,
        schedule=curve,
        window=window,
        rounds=rounds,
        scope=scope,
        pattern=pattern,
        min_density=min_density,
        optimizer=optimizer,
    )


def _defaults(spec: PrunerSpec) -> dict[str, Any]:
    """Keyword of `create_pruner` -> what it is where nobody gives it."""
    parameters = inspect.signature(create_pruner).parameters.values()
    own = {"when": spec.when, "schedule": spec.schedule, "scope": spec.scope, "sparsities": {}}
    return {parameter.name: parameter.default for parameter in parameters} | own


def _groups(
    layers: Sequence[Layer], sparsity: float, sparsities: Mapping[str, float]
) -> dict[float, list[int]]:
    """Target -> the layers that have it.

    Raises:
        ValueError: A pattern matches no layer.
    """
    check_patterns("sparsities", sparsities, [layer.name for layer in layers], "prunable weight")
    groups: dict[float, list[int]] = {}
    for i, layer in enumerate(layers):
        own = (s for pattern, s in sparsities.items() if matches(layer.name, pattern))
        groups.setdefault(float(next(own, sparsity)), []).append(i)
    return groups


def build_criterion(name: str, hyperparameters: dict[str, Any]) -> Criterion:
    """The criterion that a pruner's name stands for.

    Raises:
        ValueError: Unknown pruner, or a hyper-parameter that it does not take.
    """
    criterion = PRUNERS[name].criterion
    known = inspect.signature(criterion).parameters
    for key in hyperparameters:
        if key not in known:
            hint = nearest(key, known) if known else "it takes none"
            raise ValueError(f"{name} has no hyper-parameter '{key}': {hint}")
        usual, value = known[key].default, hyperparameters[key]
        if type(usual) in (int, float) and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ValueError(f"{key} is {value!r}: choose a number, such as {usual}")
    return criterion(**hyperparameters)


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless the sparsity is a number in [0, 1)."""
    fraction("sparsity", sparsity)


def _check_floor(min_density: float, sparsity: float, pattern: str, scope: str) -> None:
    # 0.1 is a little more than 1 - 0.9.
    if min_density > 1 - sparsity + 1e-9:
        raise ValueError(
            f"min_density is {min_density}: more than the density asked for, {1 - sparsity:g}"
        )
    if min_density and not isinstance(parse_pattern(pattern), NOfM) and pattern != "unstructured":
        raise ValueError(f"min_density counts weights: pattern '{pattern}' removes whole units")
    if min_density and scope not in _COMPETITIVE:
        raise ValueError(
            f"min_density is {min_density}: scope '{scope}' fixes what each layer keeps; choose "
            f"{' or '.join(_COMPETITIVE)}"
        )


def _warn_of_curve(name: str, criterion: Criterion, curve: str) -> None:
    """Say so where the curve is one that the criterion is not made for."""
    values = course(curve)
    if criterion.starts_sparse and min(values) < max(values):
        words = "starts sparse, which the schedule undoes: choose constant"
    elif criterion.revival == "never" and any(b < a for a, b in itertools.pairwise(values)):
        words = "lets no weight return, so it keeps the highest sparsity so far"
    else:
        return
    warnings.warn(f"{name} with schedule '{curve}': it {words}", stacklevel=3)


def _rounds(given: int | None, default: int, window: int | None) -> int:
    if given is not None and window is not None and given != window:
        raise ValueError(
            f"rounds is {given} and end_step {window}: before training they are the same, give one"
        )
    rounds = next(r for r in (given, window, default) if r is not None)
    return positive("rounds", rounds)


def _endless(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches again and again.

    Raises:
        ValueError: There are none, or they can't be gone through again.
    """
    while True:
        exhausted = True
        for batch in batches:
            exhausted = False
            yield batch
        if exhausted:
            raise ValueError("no batches left to prune on: give more, or a list of them")
