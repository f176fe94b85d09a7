"""One run: a config in, a masked model and a record out."""

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from seven_exp import runs
from seven_exp.config import ConfigError, RunConfig, faults_of_the_user
from seven_exp.console import progress_bar
from seven_exp.datasets import Data, build_data
from seven_exp.models import build_model
from seven_exp.pruning import Pruner, create_pruner
from seven_exp.pruning.layers import matches
from seven_exp.tasks import Classification, Inputs, Task
from seven_exp.tracking import RunInfo, Tracker
from seven_exp.training import loop
from seven_exp.training.distillation import Distillation
from seven_exp.training.flops import forward_flops
from seven_exp.training.optimizers import build_optimizer, lr_factor
from seven_exp.training.plan import Plan
from seven_exp.training.pretrain import cached_start
from seven_exp.training.rewinding import Snapshot

log = logging.getLogger(__name__)

_ALL_THREADS = torch.get_num_threads()
_SMALL = 1_000_000
"""Weights below which a second thread costs more in waiting than it saves in work."""


@dataclass
class Outcome:
    """What a run has come to so far; ``metric`` is the task's headline."""

    metric: str
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    levels: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    seconds_pruning: float = 0.0

    def add(self, step: int, metrics: dict[str, float], task: Task, *, settled: bool) -> None:
        """Take in an evaluation; once the masks are final, it may be the best."""
        self.metrics = metrics
        if not settled:
            return
        if not self.best or task.better(metrics[self.metric], self.best[self.metric]):
            self.best = {**metrics, "step": step}


def run_experiment(config: RunConfig, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Train and prune as the config says, and leave a record in ``folder`` whatever happens.

    Args:
        config: Checked already.
        folder: The run's own.
        tracker: Where figures go.

    Returns:
        The record, as in ``results.json``.

    Raises:
        ConfigError: A fault that only data and model could show.
        DivergedError: The loss is not finite any more; the record says so.
    """
    device = _device(config.device)
    with faults_of_the_user():
        data = _data(config, config.seed)
        plan = Plan.of(config, len(data.train))
        model = _start(config, data, device)
        _freeze(model, config.model.freeze)
        distillation = _distillation(config, model, data.task)
        optimizer = _optimizer(config, model, config.optimizer.lr)
        pruner = _pruner(config, plan, model, optimizer)
    _announce(pruner)
    facts = _facts(config, pruner, model, device)
    tracker.start(
        RunInfo(
            name=f"{pruner.name}-{pruner.target:g}-seed{config.seed}",
            group=config.tracker.group or f"{config.model.name}-{config.dataset.name}",
            tags=[pruner.name, *config.tracker.tags],
            config=config.model_dump(),
            folder=folder,
            metric=data.task.metric,
            lower_is_better=data.task.lower_is_better,
        )
    )
    outcome = Outcome(data.task.metric)
    try:
        _train(config, plan, data, model, pruner, optimizer, distillation, tracker, outcome)
        sample = _sample(data, device)
        dense, sparse = forward_flops(model, sample, pruner.layers, pruner.layer_counts)
        facts |= {"flops_dense": dense, "flops_sparse": sparse}
        runs.save_masks(folder / "masks.safetensors", pruner.masks)
        if config.trainer.save_model:
            runs.save_model(folder / "checkpoints" / "final.safetensors", model)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        tracker.finish({"status": "failed", "error": reason, **_record(facts, pruner, outcome)})
        raise
    record = {"status": "finished", **_record(facts, pruner, outcome)}
    tracker.finish(record)
    return record


def _train(
    config: RunConfig,
    plan: Plan,
    data: Data,
    model: nn.Module,
    pruner: Pruner,
    optimizer: torch.optim.Optimizer,
    distillation: Distillation | None,
    tracker: Tracker,
    outcome: Outcome,
) -> None:
    # A start that had to be built has drawn numbers which a cached one has not.
    torch.manual_seed(config.seed)
    compute = loop.Compute(next(model.parameters()).device, config.trainer.precision, data.task)
    objective: loop.Objective = compute.loss
    if distillation is not None:
        objective = partial(distillation.loss, compute)
    rewound: list[Snapshot] = []
    started = time.perf_counter()

    @contextmanager
    def on_the_clock() -> Iterator[None]:
        since = time.perf_counter()
        yield
        outcome.seconds_pruning += time.perf_counter() - since

    def prune() -> None:
        with on_the_clock():
            pruner.prune(
                loop.endless(data.train),
                lambda model, batch: compute.loss(model, *compute.place(batch))[0],
                batches_per_round=config.pruner.batches_per_round or 1,
                rounds=pruner.rounds // len(plan.prune_at),
            )

    def at(done: int) -> None:
        """What happens between this step and the next, beside training."""
        if done == plan.rewind_to and plan.rewind == "weights":
            rewound.append(Snapshot(model, optimizer))
        if done in plan.prune_at:
            if plan.when == "after":
                level = loop.evaluate(model, data.test, compute)
                outcome.levels.append({"step": done, "sparsity": pruner.sparsity, **level})
            prune()
            for snapshot in rewound:
                snapshot.restore()
                pruner.apply()

    def after_step(done: int) -> None:
        with on_the_clock():
            pruner.step()
        at(done)

    at(0)
    trained = model
    if config.trainer.compile:
        trained = cast(nn.Module, torch.compile(model))
    training = loop.train(
        trained,
        data.train,
        optimizer,
        compute,
        steps=plan.steps,
        lr_factor=lambda t: lr_factor(config.optimizer.lr_schedule, *plan.lr_place(t), plan.warmup),
        accumulate=config.trainer.accumulate,
        objective=objective,
        after_step=after_step,
        grad_clip=config.trainer.grad_clip,
        report=plan.reports,
    )
    with progress_bar(f"{pruner.name} {pruner.target:g}", plan.steps) as advance:
        for now in training:
            values = {
                "loss": now.loss,
                **({} if now.accuracy is None else {"accuracy": now.accuracy}),
                "sparsity": pruner.sparsity,
                "lr": now.lr,
            }
            if plan.evaluates(now.step):
                metrics = loop.evaluate(trained, data.test, compute)
                for ending, split in data.more.items():
                    more = loop.evaluate(trained, split, compute)
                    metrics |= {f"{name}_{ending}": value for name, value in more.items()}
                outcome.add(now.step, metrics, data.task, settled=now.step >= plan.settled)
                values |= {f"test/{name}": value for name, value in metrics.items()}
                values |= {
                    f"layer_sparsity/{name}": 1 - kept / size
                    for name, (size, kept) in pruner.layer_counts.items()
                }
            outcome.steps, outcome.seconds = now.step, time.perf_counter() - started
            tracker.log(now.step, values)
            advance(now.step, f"loss {now.loss:.3f}  sparsity {pruner.sparsity:.1%}")


def _start(config: RunConfig, data: Data, device: torch.device) -> nn.Module:
    """The model that pruning and training start from: fresh, from a checkpoint, or pretrained."""
    torch.manual_seed(config.seed)
    model = _model(config, data).to(device)
    small = sum(p.numel() for p in model.parameters()) < _SMALL
    torch.set_num_threads(config.threads or (1 if small else _ALL_THREADS))
    pretrain = config.model.pretrain
    if pretrain.epochs == 0:
        return model
    identity = {
        "version": 1,
        "model": {k: v for k, v in runs.model_identity(config).items() if k != "freeze"},
        "dataset": config.dataset.model_dump(exclude=runs.PLACES),
        "optimizer": config.optimizer.model_dump(exclude={"lr"}),
        "trainer": config.trainer.model_dump(
            include={"batch_size", "accumulate", "grad_clip", "precision"}
        ),
    }

    def build() -> dict[str, Tensor]:
        torch.manual_seed(pretrain.seed)
        start = _model(config, data).to(device)
        batches = _data(config, pretrain.seed).train
        accumulate = config.trainer.accumulate
        steps = pretrain.epochs * max(1, len(batches) // accumulate)
        warmup = Plan.warmup_steps(config, steps)
        training = loop.train(
            start,
            batches,
            _optimizer(config, start, pretrain.lr),
            loop.Compute(device, config.trainer.precision, data.task),
            steps=steps,
            accumulate=accumulate,
            lr_factor=lambda t: lr_factor(config.optimizer.lr_schedule, t, steps, warmup),
            grad_clip=config.trainer.grad_clip,
        )
        with progress_bar("pretraining", steps) as advance:
            for now in training:
                advance(now.step, f"loss {now.loss:.3f}")
        return start.state_dict()

    folder = Path(config.cache_dir).expanduser() / "pretrained"
    model.load_state_dict(cached_start(folder, runs.digest(identity), build, identity))
    return model


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let parameters whose names match stay as they are.

    Raises:
        ValueError: A pattern matches none.
    """
    for pattern in patterns:
        frozen = [p for name, p in model.named_parameters() if matches(name, pattern)]
        if not frozen:
            raise ValueError(f"model.freeze: pattern '{pattern}' matches no parameter")
        for parameter in frozen:
            parameter.requires_grad_(False)


def _distillation(config: RunConfig, model: nn.Module, task: Task) -> Distillation | None:
    """The start as a teacher, if one is wanted.

    Raises:
        ValueError: There is nothing that it could teach.
    """
    trainer = config.trainer
    if trainer.distill and not isinstance(task, Classification):
        raise ValueError(
            f"trainer.distill is {trainer.distill}: it compares probabilities of classes, and "
            f"{config.dataset.name} has none: choose 0, or trainer.distill_hidden"
        )
    if trainer.distill == trainer.distill_hidden == 0:
        return None
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    return Distillation(
        teacher, trainer.distill, trainer.distill_temperature, trainer.distill_hidden
    )


def _data(config: RunConfig, seed: int) -> Data:
    return build_data(
        config.dataset.name,
        batch_size=config.trainer.batch_size,
        seed=seed,
        **config.dataset.arguments,
    )


def _model(config: RunConfig, data: Data) -> nn.Module:
    model = build_model(
        config.model.name,
        checkpoint=config.model.checkpoint,
        **data.for_model,
        **config.model.arguments,
    )
    if config.trainer.gradient_checkpointing:
        cast(Any, model).gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _sample(data: Data, device: torch.device) -> Inputs:
    """One example's inputs, for counting operations: the first of the split, of text the shortest.

    Text is padded to nothing there, so that the figure is that of one length.
    """
    inputs, _ = next(iter(data.test.epoch(0)))
    if isinstance(inputs, Mapping):
        return {name: values[:1].to(device) for name, values in inputs.items()}
    return inputs[:1].to(device)


def _optimizer(config: RunConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return build_optimizer(
        config.optimizer.name,
        model,
        lr=lr,
        weight_decay=config.optimizer.weight_decay,
        **config.optimizer.arguments,
    )


def _pruner(
    config: RunConfig, plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Pruner:
    window: dict[str, Any] = {"rounds": config.pruner.rounds}
    if config.pruner.levels > 1:
        window = {"rounds": config.pruner.levels * (config.pruner.rounds or 1)}
    if plan.when == "during":
        window = {
            "begin_step": plan.begin,
            "end_step": plan.end,
            "interval": plan.interval,
            "levels": config.schedule.levels,
        }
    return create_pruner(
        config.pruner.name,
        model,
        sparsity=config.sparsity,
        when=plan.when,
        schedule=config.schedule.name,
        scope=config.pruner.scope,
        sparsities=config.pruner.sparsities,
        pattern=config.pruner.pattern,
        min_density=config.pruner.min_density,
        optimizer=optimizer,
        include=config.pruner.include,
        exclude=config.pruner.exclude,
        **window,
        **config.pruner.arguments,
    )


def _announce(pruner: Pruner) -> None:
    names = list(pruner.masks)
    shown = names if len(names) <= 6 else [*names[:3], "...", *names[-2:]]
    weights = sum(size for size, _ in pruner.layer_counts.values())
    log.info("prunable: %s weights in %d layers: %s", f"{weights:,}", len(names), ", ".join(shown))


def _facts(
    config: RunConfig, pruner: Pruner, model: nn.Module, device: torch.device
) -> dict[str, Any]:
    """What a record says of the run before it starts."""
    return {
        "schema": runs.SCHEMA,
        "run_hash": runs.run_hash(config, prunes=pruner.target > 0),
        "pruner": pruner.name,
        "criterion": type(pruner.criterion).__name__.lower(),
        "when": pruner.when,
        "schedule": pruner.curve,
        "scope": pruner.scope,
        "pattern": pruner.pattern,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "sparsity_target": pruner.target,
        "params_total": sum(p.numel() for p in model.parameters()),
        "params_prunable": sum(size for size, _ in pruner.layer_counts.values()),
        "flops_dense": None,
        "flops_sparse": None,
        "versions": runs.versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "git": runs.git_state(Path(__file__).parent),
        "config": config.model_dump(),
    }


def _record(facts: Mapping[str, Any], pruner: Pruner, outcome: Outcome) -> dict[str, Any]:
    counts = pruner.layer_counts
    return {
        **facts,
        "sparsity": pruner.sparsity,
        "layers": [
            {"name": name, "numel": size, "nonzero": kept} for name, (size, kept) in counts.items()
        ],
        "params_nonzero": sum(kept for _, kept in counts.values()),
        **vars(outcome),
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else mps)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is '{name}': no CUDA device here: choose cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device is 'mps': none here: choose cpu or auto")
    return device
