"""A run's training: handles each event of the loop."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from seven_exp.config import ConfigError, faults_of_the_user
from seven_exp.console import progress_bar
from seven_exp.messages import one_line
from seven_exp.pruning import NoEvidenceError
from seven_exp.runs.artifacts import save_model
from seven_exp.runs.parts import Parts
from seven_exp.tracking import Tracker, Value
from seven_exp.training import evaluation
from seven_exp.training.checkpoints import Checkpoints
from seven_exp.training.interruption import Interruption
from seven_exp.training.loop import DivergedError, Reported, Rested, Stepped, endless, train
from seven_exp.training.rewinding import Snapshot
from seven_exp.training.sharding import gathered
from seven_exp.training.state import State

log = logging.getLogger(__name__)


@dataclass
class Session:
    """The training of one run, from its start or its newest checkpoint to its end.

    Attributes:
        parts: The parts of the run.
        tracker: Logs metrics.
        checkpoints: Stores the state.
        saved: ``step``, ``state`` (None: start anew), ``id`` and ``started`` of the newest
            checkpoint.
        asked: The signal to stop, if one has arrived.
        keep_best: Whether the best model is saved.
    """

    parts: Parts
    tracker: Tracker
    checkpoints: Checkpoints
    saved: Mapping[str, Any]
    asked: Interruption
    keep_best: bool
    _since: float = field(default=0.0, init=False)

    @property
    def state(self) -> State:
        """Everything that changes, which is what a checkpoint holds."""
        return self.parts.state

    @property
    def _evaluated(self) -> nn.Module:
        """The average of the weights, if there is one; else what training calls."""
        return self.parts.trained if self.state.average is None else self.state.evaluated

    def run(self) -> None:
        """Train, prune and evaluate as the plan says.

        Raises:
            ConfigError: The checkpoint does not fit.
            DivergedError: The loss is not finite, or there is no evidence for the masks.
            InterruptedRun: A signal asked for it; the state is saved.
        """
        parts, state = self.parts, self.state
        # Building a start draws random numbers; loading a cached one does not.
        torch.manual_seed(parts.seed)
        self._begin()
        start, title = self.saved["step"], f"{state.pruner.name} {state.pruner.target:g}"
        with progress_bar(title, parts.plan.steps, shown=state.world.main) as advance:
            for event in train(
                parts.trained, parts.data.train, state.optimizer, parts.compute, parts.recipe,
                start, state.tally,
            ):  # fmt: skip
                match event:
                    case Stepped():
                        self._stepped(event.step)
                    case Reported():
                        self._reported(event, advance)
                    case Rested() if event.step < parts.plan.steps:
                        self._rested(event.step)
        if state.average is not None:
            state.average.give(state.model)
        if parts.plan.steps == 0:
            state.outcome.seconds = time.perf_counter() - self._since
            self.tracker.log(0, {"sparsity": state.pruner.sparsity, **self._evaluate(0)})

    def _begin(self) -> None:
        """Continue from the checkpoint, or do what precedes the first step."""
        self._since = time.perf_counter()
        if self.saved["state"] is None:
            self.state.pruner.start()
            self._prune(0)
            if self.state.average is not None:
                self.state.average.restart(self.state.model)
            if 0 in self.parts.plan.prune_at and self.parts.plan.steps:
                self._rested(0)
            return
        try:
            self.state.load(self.saved["state"])
        except ValueError as error:
            raise ConfigError(
                f"the checkpoint after step {self.saved['step']} in {self.checkpoints.folder} does "
                f"not fit ({error}): run.force=true starts again"
            ) from error
        self._since -= self.state.outcome.seconds

    def _stepped(self, done: int) -> None:
        """Choose masks step by step, measure gradients, and prune in rounds if the plan says so."""
        with self._pruning():
            self.state.pruner.step()
        if self.state.probe is not None:
            self.state.probe.update()
        self._prune(done)
        if self.state.average is not None:
            self.state.average.update(self.state.model, done, self.state.pruner)

    def _prune(self, done: int) -> None:
        """Prune in rounds if the plan says so, and rewind to an earlier moment."""
        parts, state, plan = self.parts, self.state, self.parts.plan
        if done == plan.rewind_to and plan.rewind == "weights":
            state.rewound.append(Snapshot(state.model, state.optimizer))
        if done not in plan.prune_at:
            return
        if plan.when == "after":
            level: dict[str, Any] = {"step": done, "sparsity": state.pruner.sparsity}
            if parts.data.validation is not None:
                level |= evaluation.evaluate(state.evaluated, parts.data.validation, parts.compute)
            state.outcome.levels.append(level)
        with self._pruning(), faults_of_the_user():
            rounds, per_round = state.pruner.rounds // len(plan.prune_at), plan.batches_per_round
            if (batches := parts.calibration) is not None and rounds == 1:
                per_round = len(batches)
            state.pruner.prune(
                endless(parts.data.train if batches is None else batches),
                parts.compute.fair_loss,
                batches_per_round=per_round,
                rounds=rounds,
            )
        for snapshot in state.rewound:
            snapshot.restore()
            state.pruner.apply()
            if state.average is not None:
                state.average.restart(state.model)

    @contextmanager
    def _pruning(self) -> Iterator[None]:
        """Measure the time; without evidence for masks, the run fails as with a NaN loss."""
        since = time.perf_counter()
        try:
            yield
        except (FloatingPointError, NoEvidenceError) as error:
            raise DivergedError(str(error)) from error
        self.state.outcome.seconds_pruning += time.perf_counter() - since

    def _reported(self, now: Reported, advance: Callable[[int, str], None]) -> None:
        """Evaluate and measure if the plan says so, and log."""
        plan, state, pruner = self.parts.plan, self.state, self.state.pruner
        values: dict[str, Value] = {
            "loss": now.loss,
            **({} if now.accuracy is None else {"accuracy": now.accuracy}),
            "sparsity": pruner.sparsity,
            "lr": now.lr,
        }
        if plan.evaluates(now.step):
            values |= self._evaluate(now.step)
        if state.probe is not None and plan.measures(now.step):
            values |= state.probe.measure(now.step, pruner.masks)
        state.outcome.steps = now.step
        state.outcome.seconds = time.perf_counter() - self._since
        self.tracker.log(now.step, values)
        advance(now.step, f"loss {now.loss:.3f}  sparsity {pruner.sparsity:.1%}")

    def _evaluate(self, step: int) -> dict[str, Value]:
        """Metrics of the validation split, at the end also of test, and each layer's sparsity."""
        parts, state = self.parts, self.state
        found: dict[str, Value] = {}
        if parts.data.validation is not None:
            metrics = evaluation.evaluate(self._evaluated, parts.data.validation, parts.compute)
            settled = step >= parts.plan.settled
            best = state.outcome.add(step, metrics, parts.data.task, settled=settled)
            if best and self.keep_best:
                weights = gathered(state.evaluated.state_dict(), keep=state.world.main)
                if state.world.main:
                    with _dispensable("the best model"):
                        save_model(self.checkpoints.folder / "best.safetensors", weights)
            found |= {f"validation/{name}": value for name, value in metrics.items()}
        if step == parts.plan.steps:
            state.outcome.metrics = self._tested()
            found |= {f"test/{name}": value for name, value in state.outcome.metrics.items()}
        layers = state.pruner.layer_counts.items()
        return found | {f"layer_sparsity/{name}": 1 - kept / size for name, (size, kept) in layers}

    def _tested(self) -> dict[str, float]:
        """Metrics of all test splits."""
        parts = self.parts
        metrics = evaluation.evaluate(self._evaluated, parts.data.test, parts.compute)
        for ending, split in parts.data.more.items():
            more = evaluation.evaluate(self._evaluated, split, parts.compute)
            metrics |= {f"{name}_{ending}": value for name, value in more.items()}
        return metrics

    def _rested(self, done: int) -> None:
        """Save the state if the plan says so, and handle a signal to stop."""
        plan, state, world, asked = self.parts.plan, self.state, self.state.world, self.asked
        # Ranks may receive a signal at different steps; a report synchronises them anyway.
        stop = (world.size == 1 or plan.reports(done)) and world.any(asked.signal is not None)
        if not (stop or plan.saves(done)):
            return
        state.outcome.seconds = time.perf_counter() - self._since
        everything, kept = state.saved(), {key: self.saved[key] for key in ("id", "started")}
        if world.main:
            with _dispensable(f"the checkpoint after step {done}"):
                self.checkpoints.save(done, {**kept, "state": everything})
        if stop:
            log.warning(
                "%s: stopping after step %d of %d; the same command continues from there",
                *(asked.signal.name if asked.signal else "a signal", done, plan.steps),
            )
            asked.obey()


@contextmanager
def _dispensable(what: str) -> Iterator[None]:
    """Write a file that the run does not need: a full disk causes a warning, not a failure."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)
        log.warning("%s can't be written (%s): the run continues without it", what, reason)
