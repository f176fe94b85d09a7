"""The contents of ``results.json``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seven_exp.config import RunConfig
from seven_exp.datasets import Data
from seven_exp.pruning import PRUNERS, Pruner
from seven_exp.runs import provenance
from seven_exp.runs.artifacts import SCHEMA
from seven_exp.runs.identity import digest, run_identity
from seven_exp.runs.reads import Method, unread
from seven_exp.tasks import Task
from seven_exp.tracking import RunInfo, titles
from seven_exp.training.state import Outcome


def facts_of(
    config: RunConfig,
    model: nn.Module,
    pruner: Pruner,
    data: Data,
    departures: Sequence[str],
    device: torch.device,
) -> dict[str, Any]:
    """The part of a record that is known before the run starts."""
    identity = run_identity(config)
    chosen_on = None if data.validation is None else "validation"
    return {
        "schema": SCHEMA,
        "run_hash": digest(identity),
        "pruner": pruner.name,
        "criterion": PRUNERS[pruner.name].criterion,
        "when": pruner.when,
        "schedule": pruner.curve,
        "scope": pruner.scope,
        "pattern": pruner.pattern,
        "model": config.model.title,
        "dataset": config.dataset.title,
        "data_files": identity["dataset"].get("files"),
        "seed": config.seed,
        "sparsity_target": pruner.target,
        "params_total": sum(p.numel() for p in model.parameters()),
        "params_prunable": sum(size for size, _ in pruner.layer_counts.values()),
        "flops_dense": None,
        "flops_sparse": None,
        "zeros_total": None,
        "params_zero": None,
        **provenance.provenance(
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        ),
        "config": config.model_dump(),
        "unread": unread(Method.of(config)),
        "test_examples": data.test_examples,
        "validation_examples": getattr(data.validation, "examples", None),
        # Records without this key measured the test split during training, and took best from it.
        "splits": {"metrics": "test", **dict.fromkeys(("validation", "best", "levels"), chosen_on)},
        "departures": list(departures),
    }


def with_outcome(facts: Mapping[str, Any], pruner: Pruner, outcome: Outcome) -> dict[str, Any]:
    """The facts, and the run's results so far."""
    counts = pruner.layer_counts
    return {
        **facts,
        "sparsity": pruner.sparsity,
        "layers": [
            {"name": name, "numel": size, "nonzero": kept} for name, (size, kept) in counts.items()
        ],
        "params_nonzero": sum(kept for _, kept in counts.values()),
        **vars(outcome),
        "ended": provenance.now(),
    }


def info_of(
    config: RunConfig, pruner: Pruner, task: Task, folder: Path, id: str, resumed: int
) -> RunInfo:
    """What trackers are told of a run."""
    name, group = titles(
        pruner.name, pruner.target, config.seed, config.model.title, config.dataset.title
    )
    return RunInfo(
        name=name,
        group=group,
        tags=[pruner.name],
        config=config.model_dump(),
        folder=folder,
        metric=task.metric,
        lower_is_better=task.lower_is_better,
        id=id,
        resumed=resumed,
    )
