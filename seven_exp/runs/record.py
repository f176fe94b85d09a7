"""The contents of ``results.json``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from seven_exp.config import RunConfig
from seven_exp.datasets import Data
from seven_exp.datasets.corpora import CORPORA
from seven_exp.pruning import PRUNERS, Pruner
from seven_exp.runs import provenance
from seven_exp.runs.artifacts import SCHEMA
from seven_exp.runs.identity import digest, run_identity
from seven_exp.runs.plan import Plan
from seven_exp.runs.reads import Pruning, unread
from seven_exp.tracking import Tracker
from seven_exp.training.state import Outcome
from seven_exp.training.world import name_of


def facts_of(
    config: RunConfig,
    model: nn.Module,
    pruner: Pruner,
    data: Data,
    plan: Plan,
    departures: Sequence[str],
    device: torch.device,
) -> dict[str, Any]:
    """The part of a record that is known before the run starts."""
    identity, pruning = run_identity(config), Pruning.of(config)
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
        "other_files": _other_files(config, identity),
        "metric": data.task.metric,
        "lower_is_better": data.task.lower_is_better,
        "seed": config.seed,
        "sparsity_target": pruner.target,
        "params_total": sum(p.numel() for p in model.parameters()),
        "params_prunable": sum(size for size, _ in pruner.layer_counts.values()),
        "flops_dense": None,
        "flops_sparse": None,
        "zeros_total": None,
        "params_zero": None,
        **provenance.provenance(name_of(device)),
        "config": config.model_dump(),
        "unread": unread(pruning),
        "effective": effective(pruning, data, plan, device),
        # A corpus is read, and perhaps downloaded, only where something trains on it.
        "train_examples": (
            getattr(data.train, "examples", None) if pruning.reads_training else None
        ),
        "test_examples": data.test_examples,
        "validation_examples": getattr(data.validation, "examples", None),
        # Records without this key measured the test split during training, and took best from it.
        "splits": {"metrics": "test", **dict.fromkeys(("validation", "best", "levels"), chosen_on)},
        "departures": list(departures),
    }


def _other_files(config: RunConfig, identity: Mapping[str, Any]) -> dict[str, str]:
    """Config key of a place -> fingerprint of the user's own model, calibration text or tasks."""
    found = {}
    if (model := identity["model"]["name"]) != config.model.name:
        found["model.name"] = model
    # A copy of a published text is that text, wherever it is.
    if config.calibration is not None and CORPORA[config.calibration.name].repository is None:
        found["calibration.data_dir"] = identity.get("calibration", {}).get("files")
    found["evaluation.include_path"] = identity.get("evaluation", {}).get("include_path")
    return {key: files for key, files in found.items() if files is not None}


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


@contextmanager
def recorded(
    tracker: Tracker, facts: Mapping[str, Any], pruner: Pruner, outcome: Outcome
) -> Iterator[dict[str, Any]]:
    """Write the run's record at the end of the context, also of a run that ends by an exception.

    Args:
        tracker: Receives the record.
        facts: As at the end of the context.
        pruner: The run's pruner.
        outcome: The run's results.

    Yields:
        The record; empty until the context ends.
    """
    record: dict[str, Any] = {}
    ending = {"status": "finished"}
    try:
        yield record
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "interrupted"
        ending = {"status": status, "error": str(error) or type(error).__name__}
        raise
    finally:
        record |= {**ending, **with_outcome(facts, pruner, outcome)}
        tracker.finish(record)


def effective(pruning: Pruning, data: Data, plan: Plan, device: torch.device) -> dict[str, Any]:
    """Dotted key -> what a null, "auto" or a fraction of the config stands for in this run.

    ``plan`` has the steps of warmup and pruning.
    """
    window = ("begin", "end", "interval") if pruning.in_training else ("prune_at", "retrain")
    found: dict[str, Any] = {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "dataset.validation": _held_out(data),
        "trainer.max_steps": plan.steps,
        "trainer.eval_interval": plan.eval_interval,
        "plan.warmup": plan.warmup,
    }
    if pruning.prunes:
        found |= {f"pruner.{key}": value for key, value in pruning.chosen.items()}
        found |= {f"plan.{key}": getattr(plan, key) for key in window}
    hidden = unread(pruning)
    return {key: v for key, v in found.items() if v is not None and key not in hidden}


def _held_out(data: Data) -> float | None:
    """The validation split's part of the training data; None if it is unknown."""
    if data.validation is None:
        return 0.0
    own, others = (getattr(split, "examples", None) for split in (data.validation, data.train))
    return None if own is None or others is None else round(own / (own + others), 3)
