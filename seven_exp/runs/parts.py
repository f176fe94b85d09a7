"""The parts of a run, each built once, from its own section of the config."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from seven_exp.analysis import Probe
from seven_exp.config import ConfigError, RunConfig, faults_of_the_user
from seven_exp.console import progress_bar
from seven_exp.datasets import Batch, Batches, Data
from seven_exp.models.loading import has_new_head
from seven_exp.pruning import Pruner, build_method, create_pruner, read_by
from seven_exp.pruning.layers import Layer, prunable_layers
from seven_exp.pruning.name_patterns import check_patterns, matches
from seven_exp.pruning.replicas import group_of
from seven_exp.runs.build import (
    calibration_of,
    check_length,
    data_of,
    first_example,
    model_of,
    optimizer_of,
)
from seven_exp.runs.dense_start import load_dense_start
from seven_exp.runs.plan import Plan
from seven_exp.runs.reads import Pruning, unread
from seven_exp.shrink import coupled_pattern
from seven_exp.tasks import Classification, Inputs
from seven_exp.training.averaging import Average
from seven_exp.training.checkpoints import digest_of
from seven_exp.training.compute import Compute, layout_for
from seven_exp.training.distillation import Distillation
from seven_exp.training.flops import forward_flops
from seven_exp.training.harness import Harness
from seven_exp.training.loop import DivergedError, Objective, Recipe, Tally, endless
from seven_exp.training.lr_schedules import lr_factor
from seven_exp.training.sharding import shard
from seven_exp.training.sharpness import raised
from seven_exp.training.state import Outcome, State
from seven_exp.training.world import World

_ALL_THREADS = torch.get_num_threads()
_SMALL = 1_000_000
"""With fewer weights than this, a second thread costs more time than it saves, if each weight is
used once for each of 64 examples; a convolution uses its weights at every position of an image."""


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        data: This rank's part of the data.
        plan: When things happen.
        recipe: How the model is trained.
        compute: Device, precision, ranks.
        seed: Seed of this rank's random generators.
        trained: The model that training calls: replicated or sharded, compiled.
        state: The model with its dense start, its optimizer and pruner, and the probe.
        start: SHA-256 of the dense start.
        diverged: Why training the dense start failed, if it did.
        calibration: The batches for pruning outside training; None: the training batches.
        departures: How data, calibration and tasks depart from a published protocol.
        harness: Zero-shot tasks.
    """

    data: Data
    plan: Plan
    recipe: Recipe
    compute: Compute
    seed: int
    trained: nn.Module
    state: State
    start: str
    diverged: DivergedError | None
    calibration: Batches | None
    departures: list[str]
    harness: Harness


def build(config: RunConfig, world: World, device: torch.device) -> Parts:
    """Build all parts of a checked config.

    Raises:
        ConfigError: A fault that only data and model can reveal.
    """
    if config.trainer.batch_size < world.size:
        raise ConfigError(
            f"trainer.batch_size is {config.trainer.batch_size}: {world.size} processes share each "
            f"batch; the nearest valid choice is {world.size}"
        )
    if config.calibration is not None and config.calibration.batch_size % world.size:
        raise ConfigError(
            f"calibration.batch_size is {config.calibration.batch_size}: {world.size} processes "
            f"share each batch; the nearest valid choice is {world.size}"
        )
    if config.evaluation.tasks and world.size > 1:
        raise ConfigError(
            "evaluation.tasks: they are evaluated by one process; choose evaluation.tasks=[], and "
            f"afterwards seven-exp measure RUN --tasks {','.join(config.evaluation.tasks)}"
        )
    sharded = config.trainer.sharding == "fsdp" and world.size > 1
    with faults_of_the_user():
        with world.in_turn():
            whole = data_of(config.dataset, config.trainer.batch_size, config.seed)
            data = whole.shared(world.rank, world.size)
            calibration, departures = calibration_of(config)
        harness = Harness.of(config.evaluation)
        plan = Plan.of(config, 1 if config.trainer.max_steps == 0 else len(data.train))
        with world.in_turn():
            # Whole weights need not fit on the device if the processes share them.
            model = _fresh(config, data, torch.device("cpu") if sharded else device)
        check_length(config, model)
        layout = layout_for(model, device)
        compute = Compute(device, config.trainer.precision, data.task, world, layout)
        diverged = None
        try:
            load_dense_start(config, data, model, compute)
        except DivergedError as error:
            # The run that requested the dense start gets a record, too.
            diverged = error
        start = digest_of(sorted(model.state_dict().items()))
        freeze(model, config.model.freeze)
        average = None if (decay := config.trainer.ema) is None else Average(model, decay)
        recipe = _recipe(config, plan, _objective(config, model, compute), compute.scaler())
        replicas = shard(model, world, device) if sharded else world.replicas(model)
        optimizer = optimizer_of(config.optimizer, model, config.optimizer.lr)
        seed = world.seed(config.seed)
        probe = _probe(config, data, replicas, compute, seed)
        example = partial(first_example, data.test, device)
        pruner = pruner_of(config, plan, replicas, optimizer, example)
    if (rho := config.trainer.sam_rho) is not None:
        recipe = replace(recipe, raised=partial(raised, model, rho, pruner.apply))
    outcome, tally = Outcome(data.task.metric), Tally.empty(device)
    trained = replicas
    if config.trainer.compile:
        trained = cast(nn.Module, torch.compile(replicas))
    return Parts(
        data=data,
        plan=plan,
        recipe=recipe,
        compute=compute,
        seed=seed,
        trained=trained,
        state=State(
            model, optimizer, pruner, outcome, tally, world, [], probe, average, recipe.scaler
        ),
        start=start,
        diverged=diverged,
        calibration=calibration,
        departures=[*data.task.departures, *departures, *harness.departures],
        harness=harness,
    )


def _fresh(config: RunConfig, data: Data, device: torch.device) -> nn.Module:
    """The model with its initial weights, or those of ``model.checkpoint``."""
    torch.manual_seed(config.seed)
    model = model_of(config, data).to(device)
    batch_size = config.trainer.batch_size
    torch.set_num_threads(config.threads or _threads_for(model, data, batch_size, device))
    return model


def _threads_for(model: nn.Module, data: Data, batch_size: int, device: torch.device) -> int:
    """One thread if a step is little work, else all."""
    small = sum(p.numel() for p in model.parameters()) < _SMALL
    if small and data.text is None:
        image = torch.zeros(1, data.channels, data.image_size, data.image_size, device=device)
        operations, _ = forward_flops(model, image, [], {})
        small = operations / 2 * batch_size < 64 * _SMALL
    return 1 if small else _ALL_THREADS


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters that match a name or name pattern.

    Raises:
        ValueError: A pattern matches none.
    """
    named = dict(model.named_parameters())
    check_patterns("model.freeze:", patterns, list(named), "parameter")
    for name, parameter in named.items():
        if any(matches(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def _objective(config: RunConfig, model: nn.Module, compute: Compute) -> Objective:
    """The loss to minimise, with the dense start as a teacher if the config asks for it.

    Raises:
        ValueError: Distillation does not apply to this task or model.
    """
    trainer = config.trainer
    if trainer.distill and not isinstance(compute.task, Classification):
        raise ValueError(
            f"trainer.distill is {trainer.distill}: it compares probabilities of classes, and "
            f"{config.dataset.name} has none: choose 0, or trainer.distill_hidden"
        )
    if trainer.distill and has_new_head(model) and config.model.pretrain.epochs == 0:
        raise ValueError(
            f"trainer.distill is {trainer.distill}: the teacher's head would be untrained, because "
            f"the weights of {config.model.title} have none for these classes; give "
            "model.pretrain.epochs, or choose trainer.distill_hidden"
        )
    compute = compute.smoothed(trainer.label_smoothing)
    if trainer.distill == trainer.distill_hidden == 0:
        return compute.loss
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    distillation = Distillation(
        teacher, trainer.distill, trainer.distill_temperature, trainer.distill_hidden
    )
    return partial(distillation.loss, compute)


def _recipe(
    config: RunConfig, plan: Plan, objective: Objective, scaler: torch.amp.GradScaler | None
) -> Recipe:
    trainer, optimizer = config.trainer, config.optimizer
    return Recipe(
        plan.steps,
        lambda t: lr_factor(
            optimizer.lr_schedule, *plan.lr_place(t), plan.warmup, optimizer.lr_options
        ),
        trainer.accumulate,
        trainer.grad_clip,
        objective,
        scaler,
        reports=plan.reports,
    )


def _probe(
    config: RunConfig, data: Data, model: nn.Module, compute: Compute, seed: int
) -> Probe | None:
    """Create the probe that measures gradients and masks, and measure the dense start."""
    if config.analysis.every is None:
        return None
    probe = Probe(prunable(config, model), bins=config.analysis.bins, group=group_of(model))
    torch.manual_seed(seed)
    count = config.analysis.start_batches
    with progress_bar("measuring the start", count, shown=compute.world.main) as advance:

        def batches() -> Iterator[Batch]:
            for done, batch in enumerate(itertools.islice(endless(data.train), count)):
                advance(done, "")
                yield batch

        probe.begin(model, batches(), compute.fair_loss)
    return probe


def prunable(config: RunConfig, model: nn.Module) -> list[Layer]:
    """The layers of a model that the config's pruner may prune."""
    chosen = config.pruner
    return prunable_layers(
        model, chosen.include, chosen.exclude, exclude_defaults=chosen.exclude_defaults
    )


def pruner_of(
    config: RunConfig,
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    example: Callable[[], Inputs],
) -> Pruner:
    """The pruner of the config; keys that it does not read are left out."""
    rounds, schedule = config.pruner.rounds, config.schedule.name
    if config.pruner.levels > 1:
        rounds = config.pruner.levels * (rounds or 1)
        if schedule == "one_shot":
            # With one_shot, the first level would leave nothing to prune for the others.
            schedule = "exponential"
    if "schedule.name" in unread(Pruning.of(config)):
        schedule = "one_shot"  # with a single update, all curves are equal
    own = {
        "sparsity": config.sparsity,
        "begin_step": plan.begin,
        "end_step": plan.end if plan.when == "during" else None,
        "interval": plan.interval,
        "levels": config.schedule.levels,
        "rounds": rounds,
        "when": plan.when,
        "schedule": schedule,
        "optimizer": optimizer,
    }
    name, arguments = config.pruner.name, config.pruner.arguments
    read = read_by(name, plan.when, schedule, build_method(name, arguments))
    given: dict[str, Any] = {
        key: own[key] if key in own else getattr(config.pruner, key) for key in read
    }
    if given.get("pattern") == "coupled":
        given["pattern"] = coupled_pattern(model, example())
    return create_pruner(name, model, **given, **arguments)
