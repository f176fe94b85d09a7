"""One run: takes a config, returns a masked model and a record."""

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seven_exp.config import RunConfig
from seven_exp.runs import artifacts, in_turn, provenance
from seven_exp.runs.build import first_example
from seven_exp.runs.parts import Parts, build
from seven_exp.runs.record import facts_of, recorded
from seven_exp.runs.session import Session
from seven_exp.tracking import Tracker, Trackers, described, write_json, writing
from seven_exp.training.checkpoints import Checkpoints
from seven_exp.training.compute import warn_if_slow
from seven_exp.training.flops import forward_flops
from seven_exp.training.freed_memory import keep_freed_memory
from seven_exp.training.harness import metrics_of
from seven_exp.training.interruption import postponed
from seven_exp.training.sharding import gathered
from seven_exp.training.world import World, join

log = logging.getLogger(__name__)


def run_experiment(
    config: RunConfig,
    folder: Path,
    tracker: Tracker,
    place: tuple[World, torch.device] | None = None,
) -> dict[str, Any]:
    """Train and prune as the config says, and always leave a record in ``folder``.

    It continues from the folder's newest checkpoint, if that belongs to the same run. On a signal
    to stop, it finishes the current step and writes a checkpoint first.

    Args:
        config: A checked config.
        folder: The run's own folder.
        tracker: Logs metrics; among several processes, only the main one uses it.
        place: The result of `join`; None: join now.

    Returns:
        The record, as in ``results.json``.

    Raises:
        ConfigError: A fault that only data and model can reveal.
        DivergedError: The loss is not finite; the record says so.
        InterruptedRun: A signal asked for it; the record says so.
        RecordError: The record can't be written.
    """
    world, device = place or join(config.device)
    warn_if_slow(device, config.trainer.precision)
    if (turn := in_turn.opened(config, world, device)) is not None:
        return in_turn.run(turn, folder, tracker)
    keep_freed_memory()
    parts = build(config, world, device)
    log.info("%s", parts.state.pruner.coverage)
    state, pruner = parts.state, parts.state.pruner
    facts = facts_of(
        *(config, state.model, pruner, parts.data, parts.plan, parts.departures),
        parts.compute.device,
    )
    checkpoints = Checkpoints(folder / "checkpoints", facts["run_hash"], config.run.keep)
    saved: dict[str, Any] = {
        "step": 0,
        "id": uuid.uuid4().hex[:8],
        "started": provenance.now(),
        "state": None,
    }
    saved |= checkpoints.latest() or {}
    facts |= {"started": saved["started"], "sha256": {"start": parts.start}}
    if saved["step"]:
        log.info("continuing after step %d of %d in %s", saved["step"], parts.plan.steps, folder)
    tracker = tracker if world.main else Trackers([])
    tracker.start(
        described(
            facts, folder, lower_is_better=parts.data.task.lower_is_better,
            id=saved["id"], resumed=saved["step"],
        )
    )  # fmt: skip
    with postponed() as asked:
        with recorded(tracker, facts, pruner, state.outcome) as record:
            if parts.diverged is not None:
                raise parts.diverged
            Session(parts, tracker, checkpoints, saved, asked, config.trainer.save_model).run()
            found = pruner.check(state.model)
            facts |= _operations(parts)
            facts |= {"zeros_total": found.zeros_total, "params_zero": found.zeros}
            found.raise_for_mismatch()
            masks = gathered(pruner.masks, keep=world.main)
            weights = None
            if config.trainer.save_model:
                weights = gathered(state.model.state_dict(), keep=world.main)
            if world.main:
                facts["sha256"] |= _written(config, folder, parts, masks, weights)
            if parts.harness.tasks:
                tokenizer = config.dataset.arguments["tokenizer"]
                facts["harness"] = parts.harness.evaluate(
                    *(state.evaluated, tokenizer, parts.compute), asked.obey_if_asked
                )
                state.outcome.metrics |= metrics_of(facts["harness"])
        if world.main:
            checkpoints.clear()
        asked.obey_if_asked()
    return record


def _operations(parts: Parts) -> dict[str, int]:
    model, pruner = parts.state.model, parts.state.pruner
    sample = first_example(parts.data.test, parts.compute.device)
    dense, sparse = forward_flops(model, sample, pruner.layers, pruner.layer_counts)
    return {"flops_dense": dense, "flops_sparse": sparse}


def _written(
    config: RunConfig,
    folder: Path,
    parts: Parts,
    masks: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None,
) -> dict[str, str]:
    """Write the files besides the record; return their checksums.

    Raises:
        RecordError: A file can't be written.
    """
    with writing(folder):
        artifacts.save_masks(folder / artifacts.MASKS, masks)
        if parts.state.probe is not None:
            write_json(folder / "analysis.json", parts.state.probe.report())
        if weights is not None and in_turn.saves_folder(config):
            tokenizer = config.dataset.arguments["tokenizer"]
            artifacts.save_folder(folder / artifacts.FOLDER, parts.state.model, weights, tokenizer)
        elif weights is not None:
            artifacts.save_model(folder / artifacts.FINAL, weights)
        return artifacts.checksums(folder)
