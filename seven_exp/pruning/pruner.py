"""The pruner: applies a method, a timing and a competition to a model's weights."""

import itertools
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from seven_exp.pruning.allocation import Pool
from seven_exp.pruning.bounds import positive
from seven_exp.pruning.check import Check, check_zeros, counterparts
from seven_exp.pruning.competition import Competition
from seven_exp.pruning.criteria.score import (
    CompensatingScore,
    Elementwise,
    GradientScore,
    LossFunction,
    ModelScore,
    OnePassScore,
    Score,
    State,
    check_scores,
    cleaned,
    finite,
)
from seven_exp.pruning.criteria.solver import GradientSolver, Solver
from seven_exp.pruning.evidence import NoEvidenceError, informative, no_evidence, unfrozen
from seven_exp.pruning.identity import Anchors, Pulse
from seven_exp.pruning.layers import Coverage, unwrap
from seven_exp.pruning.layerwise import Hold
from seven_exp.pruning.masks import Masks, Passing, pack_bits, unpack_bits
from seven_exp.pruning.method import (
    Method,
    Ranking,
    needs_batches,
    needs_model,
    prunes_by_block,
    regrows,
)
from seven_exp.pruning.older_states import translated
from seven_exp.pruning.registry import When
from seven_exp.pruning.regrowth import Remembered, StayGone, regrowth_of
from seven_exp.pruning.replicas import as_of_one, average, group_of
from seven_exp.pruning.rules import DropAndGrow, Moment, TopK
from seven_exp.pruning.schedules import Gradual, Rounds
from seven_exp.pruning.shards import gradients, held, joined, part, whole
from seven_exp.pruning.solving import Solving
from seven_exp.pruning.weights_alone import prune_by_block

T = TypeVar("T")


class Pruner:
    """Chooses masks on a schedule and keeps pruned weights at exactly zero.

    `create_pruner` makes it. A pruner that prunes *during* training acts in `step`. The others act
    in `prune`; their `step` only keeps the masks applied.

    Attributes:
        name: Its registered name.
        coverage: The prunable weights, and why the others stay dense.
        method: Chooses the masks.
        timing: When masks are chosen.
        competition: Which weights compete, and how many of them stay.
        target: Final fraction of zeros among the prunable weights.
        state: The state of the method's score; empty before the first update.
        window: The steps of a "during" pruner, or the rounds of the present or latest pruning
            outside training; None before the first round of an "after" pruner.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        method: Method,
        timing: Gradual | Rounds,
        competition: Competition,
        coverage: Coverage,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.name, self.method, self.timing, self.competition = name, method, timing, competition
        self.coverage, self.layers = coverage, coverage.layers
        self.target = competition.sparsity
        self.window = timing if isinstance(timing, Gradual) else timing.window
        self.state = State()
        self._model, self._group = unwrap(model), group_of(model)
        self._shards = competition.shards
        self._anchors, self._pulse = Anchors(self._model, self.layers), Pulse()
        self._t = 0
        self._warned_of_waiting = False
        self._masks = Masks(self._held(), shards=self._shards)
        self._sizes = [weight.numel() for weight in self._weights()]
        self._regrowth = regrowth_of(
            regrows(method),
            self.layers,
            self._masks,
            optimizer,
            training=isinstance(timing, Gradual),
            watching=needs_batches(method),
        )
        self._await_step()
        self._started = False

    @property
    def when(self) -> When:
        """Relative to training: "before", "during" or "after"."""
        return "during" if isinstance(self.timing, Gradual) else self.timing.when

    @property
    def curve(self) -> str:
        """The name of the schedule's curve."""
        return self.timing.curve

    @property
    def rounds(self) -> int:
        """Number of mask updates outside training."""
        return self.timing.n if isinstance(self.timing, Rounds) else 1

    @property
    def scope(self) -> str:
        """The name of the allocation."""
        return self.competition.scope

    @property
    def pattern(self) -> str:
        """The name of the pattern."""
        return str(self.competition.pattern)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Bool tensors by parameter name, with the weights' shapes; True = kept.

        They are unpacked copies of the stored bit masks, sharded if the weights are.
        """
        return self._joined(self._masks.unpacked())

    @property
    def scores(self) -> dict[str, Tensor]:
        """The present scores by parameter name; 0 for weights that are pruned for good.

        Raises:
            RuntimeError: The method is a solver, which keeps no scores.
        """
        if isinstance(self.method, Solver):
            raise RuntimeError(
                f"{self.name} keeps no scores: it computes them from each layer's inputs, which it "
                "drops once the layer is pruned"
            )
        scores = self._scored(self._regrowth.dense())
        if isinstance(self._regrowth, StayGone):
            masks = self._masks.unpacked()
            scores = [score * mask for score, mask in zip(scores, masks, strict=True)]
        return self._joined(scores)

    @property
    def sparsity(self) -> float:
        """The present fraction of zeros among the prunable weights."""
        return 1 - sum(self._masks.kept) / sum(self._sizes)

    @property
    def layer_counts(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> (number of weights, number of kept weights)."""
        return self._named(zip(self._sizes, self._masks.kept, strict=True))

    def start(self) -> None:
        """Start pruning from the model's present weights.

        A pruner that is sparse from the start (SET, RigL) draws and applies its first masks here,
        so that the first forward pass is already sparse. If `start` is not called, the first `step`
        or `prune` does this. Creating a pruner changes no weight. Call `start` after loading the
        initial weights, and not before `load_state_dict`.

        Raises:
            RuntimeError: A weight no longer belongs to the model.
        """
        self._check_weights()
        before = self._masks.kept
        self._begin()
        self._warn_of_lost_layers(before, stacklevel=3)

    @torch.no_grad()
    def step(self) -> None:
        """Call after ``optimizer.step()`` and before ``zero_grad()``, like an LR scheduler.

        Inside the window, the step updates the score with the gradients and, when the schedule says
        so, chooses new masks. Every step sets pruned weights back to zero. For a "before" pruner
        that has not finished its rounds, a step outside `prune` counts as one round.

        A step is skipped if its gradients are all zero, or all broken (NaN or infinite) in some
        layer. While all scores are equal or broken, the masks stay unchanged and the pruner warns
        once; the next mask update uses the schedule's sparsity at that time.

        Raises:
            NoEvidenceError: The window ends while all scores of a pool are equal or broken.
            RuntimeError: The pruner needs gradients and finds none, or needs `prune`, or a weight
                no longer belongs to the model.
        """
        self._check_weights()
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

        Kept weights keep their values, unless the method compensates for the pruned ones. Every
        round computes gradients on the next batches with the present masks, then raises the
        sparsity along the schedule. Parameters' ``.grad`` and the training mode do not change.

        Args:
            batches: Each one is passed to ``loss_fn``; the iteration restarts when they run out.
                Not needed by methods that read only the weights.
            loss_fn: ``loss_fn(model, batch)`` -> scalar.
            batches_per_round: Default: all batches if there is one round, else one.
            rounds: Number of rounds to run now; later calls run the others (iterative pruning with
                training in between). None: all rounds, from the first.

        Raises:
            FloatingPointError: The loss of a batch is not finite.
            NoEvidenceError: All scores of a pool are equal or broken; the masks stay unchanged.
            RuntimeError: The pruner acts during training, or a weight no longer belongs to the
                model.
            ValueError: The method needs batches and has none, or an argument is invalid.
        """
        if self.when == "during":
            raise RuntimeError(f"{self.name} prunes during training: call step() after each step")
        rounds = None if rounds is None else positive("rounds", rounds)
        if batches_per_round is not None:
            batches_per_round = positive("batches_per_round", batches_per_round)
        self._check_weights()
        if not needs_batches(self.method):
            batches, per_round = [None], 1
        elif batches is None or loss_fn is None:
            raise ValueError(f"{self.name} needs batches and a loss: prune(batches, loss_fn)")
        elif not callable(loss_fn):
            kind = type(loss_fn).__name__
            raise ValueError(f"loss_fn is a {kind}: pass a function, prune(batches, loss_fn)")
        elif batches_per_round is None and self.rounds == 1:
            batches = list(batches)
            per_round = len(batches)
        else:
            per_round = batches_per_round or 1
        supply = iter(_endless(batches))
        if rounds is None or self.window is None or self._t >= self.rounds:
            self.window, self._t = Gradual(self.curve, 0, self.rounds), 0
        before = self._masks.kept
        self._begin()
        for _ in range(self.rounds if rounds is None else min(rounds, self.rounds - self._t)):
            chosen = list(itertools.islice(supply, max(1, per_round)))
            if loss_fn is not None and needs_batches(self.method):
                self._measure(chosen, loss_fn)
            with torch.no_grad():
                self._advance()
        self._warn_of_lost_layers(before, stacklevel=3)

    def prune_in_turn(
        self,
        batches: Sequence[Any],
        loss_fn: LossFunction,
        hold: Hold,
        done: Mapping[str, int] | None = None,
    ) -> None:
        """Prune a model whose blocks have weights only while they are pruned, in one round.

        The masks are those of `prune`, and are not kept: `take_masks` returns those of a block
        when its ``hold`` ends, and those of weights outside all blocks at the end.

        Args:
            batches: All are passed to ``loss_fn``, if the method reads any.
            loss_fn: ``loss_fn(model, batch)`` -> scalar.
            hold: Loads a block's weights, and stores and frees them at its end.
            done: Name of each weight that an earlier call has pruned -> how many it kept.

        Raises:
            NoEvidenceError: All scores of a layer are equal or broken.
            ValueError: The method reads several blocks at once, or layers compete across blocks.
        """
        together = self.competition.spans_blocks and any(self.competition.targets)
        if together or not prunes_by_block(self.method):
            raise ValueError(f"{self.name} reads several blocks at once: call prune()")
        done = done or {}
        self._masks = Passing(self.layers)
        self._masks.kept = [
            done.get(x.name, n) for x, n in zip(self.layers, self._sizes, strict=True)
        ]
        self.window = Gradual(self.curve, 0, 1)
        before = list(self._sizes)
        if isinstance(self.method, Solver):
            self._solve(self.method, batches, loss_fn, hold, done)
        elif isinstance(score := self.method.score, Score):
            finished = {i for i, layer in enumerate(self.layers) if layer.name in done}
            pools = [
                pool
                for pool in self.competition.pools(partial(self.window.sparsity, self._t), finished)
                if self.competition.kept(pool) < sum(self._sizes[i] for i in pool.layers)
            ]
            prune_by_block(
                self.name, self._model, score, self.competition, self._masks, pools, hold
            )
        self._t = 1
        self._warn_of_lost_layers(before, stacklevel=3)

    def take_masks(self, names: Collection[str]) -> dict[str, Tensor]:
        """The masks that `prune_in_turn` has chosen for some weights, each given once, by name."""
        assert isinstance(self._masks, Passing)
        return self._masks.taken(names)

    def apply(self, model: nn.Module | None = None) -> None:
        """Set every pruned weight to exactly zero.

        Args:
            model: A copy of the model, such as one with averaged weights. Its parameters are
                matched by name; wrappers may add a prefix. None: the model itself.

        Raises:
            RuntimeError: A weight no longer belongs to the model.
            ValueError: The copy lacks a weight, or has it in another shape.
        """
        self._check_weights()
        if model is not None:
            weights = list(counterparts(model, self.layers).values())
            rows = list(map(held, weights))
            self._masks.beside(rows).apply(rows)
        else:
            self._zero()

    def check(self, model: nn.Module | None = None) -> Check:
        """Count the zeros of the model, or of a copy of it, and compare them with the masks.

        Args:
            model: As for `apply`.

        Returns:
            Zeros by layer and over all parameters. ``check().ok`` is whether all pruned weights are
            zero; ``check().raise_for_mismatch()`` raises an error that names a layer where they are
            not.

        Raises:
            RuntimeError: A weight no longer belongs to the model.
            ValueError: The copy lacks a weight, or has it in another shape.
        """
        self._check_weights()
        if model is None:
            found, weights = self._model, self._named(self._weights())
        else:
            found, weights = unwrap(model), dict(counterparts(model, self.layers))
        return check_zeros(found, weights, self._named(self._masks.unpacked()), self._shards)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as tensors, numbers and strings; masks are packed to bits.

        The tensors are the score's own, and further steps change them: copy those that you keep.
        They are sharded if the weights are; the masks are whole.
        """
        keeps = isinstance(self._regrowth, Remembered)
        return {
            "name": self.name,
            "settings": self._settings(),
            "target": self.target,
            "step": self._t,
            "started": self._started,
            "window": None if self.window is None else vars(self.window) | {},
            "masks": {name: pack_bits(whole(mask)) for name, mask in self.masks.items()},
            "state": {name: self._joined(tensors) for name, tensors in self.state.tensors.items()},
            "numbers": dict(self.state.numbers),
            "memory": self._named(self._regrowth.dense()) if keeps else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, on a model with the same prunable weights.

        A whole state fits a sharded model, and each rank takes its rows.

        The model's own state may be loaded before or after.

        Raises:
            RuntimeError: A weight no longer belongs to the model.
            ValueError: It is not a pruner's state, or another pruner saved it, or it belongs to
                other weights or other settings.
        """
        if not {"name", "masks"} <= set(state):
            raise ValueError("this is not a pruner's state: pass what pruner.state_dict() returned")
        self._check_weights()
        if state["name"] != self.name or list(state["masks"]) != [
            layer.name for layer in self.layers
        ]:
            raise ValueError(f"the state of '{state['name']}' does not fit {self.name}'s weights")
        own = self._settings()
        for key, saved in state.get("settings", {}).items():
            if saved != own[key]:
                raise ValueError(
                    f"the state was saved with {key} {saved}, but this pruner has {own[key]}: "
                    "create the pruner with the same settings"
                )
        weights = self._weights()
        self.target, self._t = state["target"], state["step"]
        # Older states come from pruners that started at creation.
        self._started = state.get("started", True)
        self.window = None if state["window"] is None else Gradual(**state["window"])
        state = translated(state, self.window)
        self._masks.set(
            [
                part(unpack_bits(packed, weight.shape), weight)
                for packed, weight in zip(state["masks"].values(), weights, strict=True)
            ]
        )
        self._check_evidence(state["state"])
        tensors = {
            name: [part(tensors[layer.name], layer.weight).clone() for layer in self.layers]
            for name, tensors in state["state"].items()
        }
        self.state = State(tensors, dict(state["numbers"]), self._shards)
        memory = state["memory"]
        if memory is not None:
            devices = {layer.name: layer.weight.device for layer in self.layers}
            self._regrowth.load([memory[n].to(device).clone() for n, device in devices.items()])
        self._zero()
        self._await_step()

    def _act(self) -> None:
        """Update the masks and the weights for one `step`."""
        if self.window is None:
            return
        if self.when == "before" and self.window.covers(self._t) and needs_model(self.method):
            raise RuntimeError(f"{self.name} runs the model itself: call prune() first")
        if self.when == "after":
            self._zero()
            return
        self._begin()
        if self.window.covers(self._t) and needs_batches(self.method) and self._observe():
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
        """Tell the regrowth whether the next step lies in the window."""
        self._regrowth.begin(self.window is not None and self.window.covers(self._t))

    def _check_weights(self) -> None:
        """Check that the weights still belong to the model; follow them to another device."""
        self._anchors.check()
        devices = [weight.device for weight in self._weights()]
        if devices != [bits.device for bits in self._masks.bits]:
            self._follow(devices)

    def _follow(self, devices: Sequence[torch.device]) -> None:
        """Move the masks, the state and the dense weights to the weights' present devices.

        Raises:
            RuntimeError: The weights moved to or from the meta device.
        """
        for layer, device, bits in zip(self.layers, devices, self._masks.bits, strict=True):
            if device != bits.device and "meta" in (device.type, bits.device.type):
                raise RuntimeError(
                    f"{layer.name} has moved from the {bits.device.type} to the {device.type} "
                    "device: create the pruner after the model has loaded its weights"
                )
        self._masks.bits = self._masks.beside(self._held()).bits
        memory = self._regrowth.memory
        for column in (*self.state.tensors.values(), *([memory] if memory else [])):
            column[:] = [tensor.to(device) for tensor, device in zip(column, devices, strict=True)]

    @torch.no_grad()
    def _begin(self) -> None:
        """Choose the first masks of a rule that starts sparse, once."""
        if self._started:
            return
        self._started = True
        if isinstance(self.method, Solver) or not isinstance(self.method.rule, DropAndGrow):
            return
        draw = self.method.rule.first(self._weights())
        average(draw, self._group)
        self._choose(self.competition.pools(lambda target: target), draw, self._masks.unpacked())
        self._zero()

    def _zero(self) -> None:
        """Set every pruned weight of the model to exactly zero."""
        self._regrowth.store_unmasked()
        if sum(self._masks.kept) < sum(self._sizes):
            self._masks.apply(self._held())

    def _settings(self) -> dict[str, Any]:
        """The settings that a loaded state must agree with."""
        targets = {i: t for t, members in self.competition.targets.items() for i in members}
        return {
            "shapes": [list(weight.shape) for weight in self._weights()],
            "sparsities": [targets[i] for i in range(len(self.layers))],
            "schedule": self.curve,
            "scope": self.scope,
            "pattern": self.pattern,
        }

    @property
    def _ranking(self) -> Ranking:
        """The method of a pruner that ranks weights; nothing asks a solver for it."""
        assert isinstance(self.method, Ranking)
        return self.method

    def _scored(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The ranking's scores of weights."""
        score = self._ranking.score
        if isinstance(score, ModelScore):
            if "score" not in self.state.tensors:
                self.state = score.init(weights)
            return self.state["score"]
        scores = score.score(self._evidence(score, weights), weights)
        check_scores(self.name, scores, weights)
        return scores

    def _evidence(self, score: Score, weights: Sequence[Tensor]) -> State:
        """The score's state, created at first use."""
        if not self.state.tensors:
            begun = score.init(weights)
            if not isinstance(begun, State):
                kind = type(begun).__name__
                raise TypeError(f"init() of {self.name}'s score returned a {kind}: return a State")
            begun.numbers |= self.state.numbers
            self.state = replace(begun, shards=self._shards)
        return self.state

    def _check_evidence(self, saved: Mapping[str, Any]) -> None:
        """Raise ValueError if the saved tensors lack one that this pruner's score starts with."""
        if not saved or isinstance(self.method, Solver):
            return
        known = {"score"}
        if isinstance(self.method.score, Score):
            bare = [torch.empty_like(weight, device="meta") for weight in self._held()]
            known = set(self.method.score.init(bare).tensors)
        if not known <= set(saved):
            raise ValueError(
                f"the state holds {', '.join(sorted(saved))}, but {self.name} reads "
                f"{', '.join(sorted(known)) or 'nothing'}: another version saved it"
            )

    def _observe(self) -> bool:
        """Update the score with a step's gradients; return whether it also chose the masks."""
        values = self._regrowth.forward()
        grads = [None if w.grad is None else held(w.grad) for w in self._weights()]
        if all(grad is None for grad in grads):
            raise RuntimeError(
                f"{self.name} finds no gradient: call step() after backward() and before "
                "zero_grad(), and create the pruner for the model that is trained, not for a copy"
            )
        if not informative(grads, self._shards):
            self._warn_of_waiting(
                f"{self.name} skips a step whose gradients are all zero or broken: call step() "
                "before zero_grad(), and check for an overflow or an output layer of zeros",
                stacklevel=6,
            )
            return False
        score = self._ranking.score
        assert isinstance(score, GradientScore)
        state = self._evidence(score, values)
        if isinstance(score, OnePassScore) and (k := self._plainly_kept()) is not None:
            return score.observe_and_choose(state, values, grads, self._masks, k)
        score.observe(state, values, grads)
        return False

    def _plainly_kept(self) -> int | None:
        """Number of weights that this step keeps, if only the scores of the kept ones decide."""
        assert self.window is not None
        simple = type(self._ranking.rule) is TopK and isinstance(self._regrowth, StayGone)
        if not (simple and self._group is None and self.window.updates(self._t)):
            return None
        return self.competition.plainly_kept(partial(self.window.sparsity, self._t))

    def _advance(self) -> None:
        """Advance one step: update the masks if it is time, and set pruned weights to zero."""
        assert self.window is not None
        # A solver has chosen its masks already.
        if self.window.updates(self._t) and isinstance(self.method, Ranking):
            self._update()
        elif self.window.covers(self._t):
            self._regrowth.store()
        self._move_on()

    def _move_on(self) -> None:
        self._t += 1
        self._zero()

    def _measure(self, batches: Sequence[Any], loss_fn: LossFunction) -> None:
        """Score the weights on a round's batches; frozen weights are scored, too."""
        method = self.method
        if isinstance(method, Solver):
            self._solve(method, batches, loss_fn)
            return
        weights = self._weights()
        with unfrozen(weights):
            if isinstance(method.score, ModelScore):
                found = method.score.score(self._model, weights, batches, loss_fn, self._mean)
                check_scores(self.name, found, weights)
                self.state.tensors = {"score": found}
            elif isinstance(score := method.score, GradientScore):
                values = self._regrowth.dense()
                begun = score.begin_round(self._evidence(score, values), values)
                numbers = self.state.numbers | begun.numbers
                self.state = State(begun.tensors, numbers, self._shards)
                self._take_gradients(score, self.state, batches, loss_fn)

    def _solve(
        self,
        solver: Solver,
        batches: Sequence[Any],
        loss_fn: LossFunction,
        hold: Hold | None = None,
        done: Collection[str] = (),
    ) -> None:
        """Solve all layers for their inputs on a round's batches."""
        assert self.window is not None
        solving = Solving(
            self.name,
            self._model,
            solver,
            self.competition,
            self._masks,
            partial(self.window.sparsity, self._t),
            self._group,
            self._gradients(solver, batches, loss_fn),
            hold,
            done,
        )
        solving.run([partial(loss_fn, self._model, batch) for batch in batches])
        self._warn_of_unused(solving.unused, stacklevel=5)

    def _gradients(
        self, solver: Solver, batches: Sequence[Any], loss_fn: LossFunction
    ) -> list[Tensor]:
        """The scores of `GradientSolver.gradients` on the present model, one tensor per layer."""
        if not isinstance(solver, GradientSolver):
            return []
        score, weights = solver.gradients(), self._weights()
        state = score.init(weights)
        with unfrozen(weights):
            self._take_gradients(score, state, batches, loss_fn)
        return [as_of_one(norms, self._group) for norms in score.score(state, weights)]

    def _take_gradients(
        self, score: GradientScore, state: State, batches: Sequence[Any], loss_fn: LossFunction
    ) -> None:
        """Update a state with the gradients of each batch, with the present masks applied."""
        weights, values = self._weights(), self._regrowth.dense()
        for batch in batches:
            loss = finite(loss_fn(self._model, batch))
            grads: Sequence[Tensor | None]
            if self._shards is None:
                grads = torch.autograd.grad(loss, weights, allow_unused=True)
            else:
                grads = gradients(loss, self._model, weights)
            if all(grad is None for grad in grads):
                raise NoEvidenceError(
                    "the loss depends on none of the prunable weights: loss_fn(model, batch) must "
                    "call the model that it receives"
                )
            with torch.no_grad():
                seen = grads if self._group is None else self._mean(cleaned(grads, weights))
                if informative(seen, self._shards):
                    score.observe(state, values, seen)

    def _mean(self, tensors: list[Tensor]) -> list[Tensor]:
        average(tensors, self._group)
        return tensors

    def _update(self) -> None:
        """Choose new masks for all layers, and set the values of weights that return."""
        assert self.window is not None
        rule, progress = self._ranking.rule, self.window.progress(self._t)
        stay_gone = isinstance(self._regrowth, StayGone)
        if stay_gone and not isinstance(self._ranking.score, Elementwise):
            self._zero()  # The optimizer has moved pruned weights, on which others' scores depend.
        values, masks = self._regrowth.dense(), self._masks.unpacked()
        self.state.numbers["updates"] = self.state.numbers.get("updates", 0) + 1
        scores = self._scored(values)
        self.state.numbers["progress"] = progress
        competition = self.competition.measured(self._model, self._group)
        asked = competition.pools(partial(self.window.sparsity, self._t))
        floors = rule.floors(scores, progress)
        pools = [competition.at_least(pool, sum(floors[i] for i in pool.layers)) for pool in asked]
        density = sum(map(self.competition.kept, pools)) / sum(self._sizes)
        moment = Moment(progress, density, competition.of_units)
        ranks = rule.rank(scores, values, masks, moment)
        # Ranks may differ between processes by a random draw or by rounding.
        average(ranks, self._group)
        after = self._choose(pools, ranks, masks)
        self._regrowth.revive(masks, after, values)
        score = self._ranking.score
        if isinstance(score, CompensatingScore):
            moved = score.compensate(self.state, values, masks, after)
            for weight, value in zip(self._weights(), moved, strict=True):
                weight.data.copy_(value)
        self._regrowth.store(values)
        if self._t + 1 >= self.window.end and pools != asked:
            warnings.warn(
                f"{self.name} ends at sparsity {self.sparsity:.3f} instead of {self.target:.3f}, "
                "because its threshold prunes no more",
                stacklevel=6,
            )

    def _choose(
        self, pools: Sequence[Pool], ranks: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> list[Tensor]:
        """Choose new masks: keep the highest ranks among the candidates.

        Raises:
            NoEvidenceError: All ranks of a pool are equal or broken; all masks stay unchanged.
        """
        stay_gone = isinstance(self._regrowth, StayGone)
        counts = self._masks.kept if stay_gone else self._sizes
        chosen = dict(enumerate(masks))
        for pool in pools:
            own = {i: ranks[i] for i in pool.layers}
            candidates = {i: masks[i] if stay_gone else torch.ones_like(masks[i]) for i in own}
            best = self.competition.best(pool, own, candidates, sum(counts[i] for i in own))
            if best is None:
                raise no_evidence(
                    *(self.name, self._model, self.layers, self._masks.kept),
                    *(pool, list(own.values()), needs_batches(self.method)),
                )
            chosen |= best
        self._masks.set(list(chosen.values()))
        return list(chosen.values())

    def _warn_of_waiting(self, reason: str, *, stacklevel: int) -> None:
        if not self._warned_of_waiting:
            warnings.warn(f"{reason}; the masks stay unchanged", stacklevel=stacklevel)
        self._warned_of_waiting = True

    def _warn_of_unused(self, unused: Collection[int], *, stacklevel: int) -> None:
        if len(unused) == len(self.layers):
            raise NoEvidenceError(
                f"{self.name} has captured no layer's inputs: loss_fn(model, batch) must call the "
                "model that it receives"
            )
        if unused:
            names = [self.layers[i].name for i in sorted(unused)]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            warnings.warn(
                f"{', '.join(names[:3])}{more} stay dense: no batch calls their modules, so their "
                "inputs are unknown",
                stacklevel=stacklevel,
            )

    def _warn_of_lost_layers(self, before: Sequence[int], *, stacklevel: int) -> None:
        if self.competition.pattern.empties_layers:
            return
        for layer, old, new in zip(self.layers, before, self._masks.kept, strict=True):
            if old and not new:
                cure = "a sparsity of its own"
                if self.competition.floor_helps:
                    floor = self.competition.min_density
                    cure = "a larger min_density" if floor else "min_density"
                warnings.warn(
                    f"{layer.name} has lost all its weights; {cure} keeps some",
                    stacklevel=stacklevel,
                )

    def _named(self, values: Iterable[T]) -> dict[str, T]:
        """One value per layer, by parameter name."""
        return {layer.name: value for layer, value in zip(self.layers, values, strict=True)}

    def _joined(self, rows: Iterable[Tensor]) -> dict[str, Tensor]:
        """One tensor per layer, sharded like the weights if they are, by parameter name."""
        return self._named(map(joined, rows, self._weights()))

    def _weights(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self.layers]

    def _held(self) -> list[Tensor]:
        """The weights, or this rank's rows of them."""
        return list(map(held, self._weights()))


def _endless(batches: Iterable[Any]) -> Iterable[Any]:
    """Repeat the batches forever.

    Raises:
        ValueError: There are none, or they can't be iterated again.
    """
    while True:
        exhausted = True
        for batch in batches:
            exhausted = False
            yield batch
        if exhausted:
            raise ValueError("no batches left to prune on: pass more batches, or a list of them")
