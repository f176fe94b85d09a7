"""The contents of ``results.json``."""

from collections.abc import Mapping
from typing import Any

import torch

from seven_exp.config import RunConfig
from seven_exp.pruning import PRUNERS
from seven_exp.runs import provenance
from seven_exp.runs.artifacts import SCHEMA
from seven_exp.runs.identity import digest, run_identity
from seven_exp.runs.parts import Parts
from seven_exp.runs.reads import Method, unread
from seven_exp.training.state import State


def facts_of(config: RunConfig, parts: Parts) -> dict[str, Any]:
    """The part of a record that is known before the run starts."""
    identity, device = run_identity(config), parts.compute.device
    model, pruner = parts.state.model, parts.state.pruner
    chosen_on = None if parts.data.validation is None else "validation"
    return {
        "schema": SCHEMA,
        "run_hash": digest(identity),
        "pruner": pruner.name,
        "criterion": PRUNERS[pruner.name].criterion,
        "when": pruner.when,
        "schedule": pruner.curve,
        "scope": pruner.scope,
        "pattern": pruner.pattern,
        "model": config.model.name,
        "dataset": config.dataset.name,
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
        "test_examples": parts.data.test_examples,
        "validation_examples": getattr(parts.data.validation, "examples", None),
        # Records without this key measured the test split during training, and took best from it.
        "splits": {"metrics": "test", **dict.fromkeys(("validation", "best", "levels"), chosen_on)},
    }


def with_outcome(facts: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The facts, and the run's results so far."""
    counts = state.pruner.layer_counts
    return {
        **facts,
        "sparsity": state.pruner.sparsity,
        "layers": [
            {"name": name, "numel": size, "nonzero": kept} for name, (size, kept) in counts.items()
        ],
        "params_nonzero": sum(kept for _, kept in counts.values()),
        **vars(state.outcome),
        "ended": provenance.now(),
    }
