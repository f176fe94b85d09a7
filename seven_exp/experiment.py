"""One run: a config in, a masked model and a record out."""

import copy
import itertools
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from seven_exp import runs
from seven_exp.analysis import Probe
from seven_exp.build import data_of, first_example, model_of
from seven_exp.config import ConfigError, RunConfig, faults_of_the_user
from seven_exp.console import progress_bar
from seven_exp.datasets import Batch, Data
from seven_exp.pruning import PRUNERS, NoEvidenceError, Pruner, create_pruner, read_by
from seven_exp.pruning.layers import prunable_layers
from seven_exp.pruning.name_patterns import check_patterns, matches
from seven_exp.pruning.replicas import group_of
from seven_exp.reads import Method, unread
from seven_exp.tasks import Classification, Task
from seven_exp.tracking import RunInfo, Tracker, Trackers, Value, write_json, writing
from seven_exp.training import loop
from seven_exp.training.checkpoints import Checkpoints, digest_of
from seven_exp.training.distillation import Distillation
from seven_exp.training.flops import forward_flops
from seven_exp.training.freed_memory import keep_freed_memory
from seven_exp.training.interruption import Interruption, postponed
from seven_exp.training.optimizers import build_optimizer, lr_factor
from seven_exp.training.plan import Plan, steps_of
from seven_exp.training.pretrain import cached_start
from seven_exp.training.rewinding import Snapshot
from seven_exp.training.state import Outcome, State
from seven_exp.training.world import World, join

log = logging.getLogger(__name__)

_ALL_THREADS = torch.get_num_threads()
_SMALL = 1_000_000
"""Weights below which a second thread costs more in waiting than it saves in work, if each of them
is used once for each of 64 examples; a convolution uses its own at every place of an image."""


def run_experiment(
    config: RunConfig,
    folder: Path,
    tracker: Tracker,
    place: tuple[World, torch.device] | None = None,
) -> dict[str, Any]:
    """Train and prune as the config says, and leave a record in ``folder`` whatever happens.

    Goes on from the folder's newest checkpoint, if it is of the same run. A signal to end is
    obeyed after the step under way, once a checkpoint is written.

    Args:
        config: Checked already.
        folder: The run's own.
        tracker: Where figures go; of several processes, only the main one's is told.
        place: What `join` has given; None: join now.

    Returns:
        The record, as in ``results.json``.

    Raises:
        ConfigError: A fault that only data and model could show.
        DivergedError: The loss is not finite any more; the record says so.
        InterruptedRun: A signal asked for it; the record says so.
        RecordError: The record can't be written.
    """
    world, device = place or join(config.device)
    keep_freed_memory()
    if config.trainer.batch_size < world.size:
        raise ConfigError(
            f"trainer.batch_size is {config.trainer.batch_size}: {world.size} processes share each "
            f"batch; the nearest valid choice is {world.size}"
        )
    diverged = None
    with faults_of_the_user():
        with world.in_turn():
            data = data_of(config, config.seed).shared(world.rank, world.size)
        plan = Plan.of(config, len(data.train))
        with world.in_turn():
            model = _fresh(config, data, device)
        try:
            _pretrain(config, data, model)
        except loop.DivergedError as error:
            # The run that asked for it has a record too.
            diverged = error
        start = digest_of(sorted(model.state_dict().items()))
        _freeze(model, config.model.freeze)
        distillation = _distillation(config, model, data.task)
        optimizer = _optimizer(config, model, config.optimizer.lr)
        replicas = world.replicas(model)
        probe = _probe(config, data, replicas, world)
        pruner = _pruner(config, plan, replicas, optimizer)
    log.info("%s", pruner.coverage)
    facts = _facts(config, pruner, model, device) | {"test_examples": data.test_examples}
    checkpoints = Checkpoints(folder / "checkpoints", facts["run_hash"], config.run.keep)
    saved: dict[str, Any] = {"step": 0, "id": uuid.uuid4().hex[:8], "started": runs.now()}
    saved |= checkpoints.latest() or {"state": None}
    facts |= {"started": saved["started"], "sha256": {"start": start}}
    if saved["step"]:
        log.info("going on after step %d of %d in %s", saved["step"], plan.steps, folder)
    tracker = tracker if world.main else Trackers([])
    tracker.start(
        RunInfo(
            name=f"{pruner.name}-{pruner.target:g}-seed{config.seed}",
            group=f"{config.model.name}-{config.dataset.name}-{pruner.name}",
            tags=[pruner.name],
            config=config.model_dump(),
            folder=folder,
            metric=data.task.metric,
            lower_is_better=data.task.lower_is_better,
            id=saved["id"],
            resumed=saved["step"],
        )
    )
    outcome, tally = Outcome(data.task.metric), loop.Tally.empty(device)
    state = State(model, optimizer, pruner, outcome, tally, world, probe=probe)
    with postponed() as asked:
        try:
            if diverged is not None:
                raise diverged
            _train(
                config,
                plan,
                data,
                state,
                replicas,
                distillation,
                tracker,
                checkpoints,
                saved,
                asked,
            )
            sample = first_example(data.test, device)
            dense, sparse = forward_flops(model, sample, pruner.layers, pruner.layer_counts)
            facts |= {"flops_dense": dense, "flops_sparse": sparse}
            found = pruner.check(model)
            facts |= {"zeros_total": found.zeros_total, "params_zero": found.zeros}
            found.raise_for_mismatch()
            if world.main:
                with writing(folder):
                    runs.save_masks(folder / "masks.safetensors", pruner.masks)
                    if probe is not None:
                        write_json(folder / "analysis.json", probe.report())
                    if config.trainer.save_model:
                        runs.save_model(folder / "checkpoints" / "final.safetensors", model)
                    facts["sha256"] |= runs.checksums(folder)
        except BaseException as error:
            reason = str(error) or type(error).__name__
            status = "failed" if isinstance(error, Exception) else "interrupted"
            unfinished = _record(facts, pruner, state.outcome)
            tracker.finish({"status": status, "error": reason, **unfinished})
            raise
        record = {"status": "finished", **_record(facts, pruner, state.outcome)}
        tracker.finish(record)
        if world.main:
            checkpoints.clear()
        if asked.signal is not None:
            asked.obey()
    return record


def _train(
    config: RunConfig,
    plan: Plan,
    data: Data,
    state: State,
    replicas: nn.Module,
    distillation: Distillation | None,
    tracker: Tracker,
    checkpoints: Checkpoints,
    saved: Mapping[str, Any],
    asked: Interruption,
) -> None:
    world, model, pruner = state.world, state.model, state.pruner
    # A start that had to be built has drawn numbers which a cached one has not.
    torch.manual_seed(world.seed(config.seed))
    compute = _compute(config, data, model, world)
    objective: loop.Objective = compute.loss
    if distillation is not None:
        objective = partial(distillation.loss, compute)

    @contextmanager
    def pruning() -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        except (FloatingPointError, NoEvidenceError) as error:
            raise loop.DivergedError(str(error)) from error
        state.outcome.seconds_pruning += time.perf_counter() - since

    def prune() -> None:
        with pruning(), faults_of_the_user():
            pruner.prune(
                loop.endless(data.train),
                compute.fair_loss,
                batches_per_round=config.pruner.batches_per_round or 1,
                rounds=pruner.rounds // len(plan.prune_at),
            )

    def at(done: int) -> None:
        """What happens between this step and the next, beside training."""
        if done == plan.rewind_to and plan.rewind == "weights":
            state.rewound.append(Snapshot(model, state.optimizer))
        if done in plan.prune_at:
            if plan.when == "after":
                level = loop.evaluate(model, data.test, compute)
                state.outcome.levels.append({"step": done, "sparsity": pruner.sparsity, **level})
            prune()
            for snapshot in state.rewound:
                snapshot.restore()
                pruner.apply()

    def after_step(done: int) -> None:
        with pruning():
            pruner.step()
        if state.probe is not None:
            state.probe.update()
        at(done)

    def at_rest(done: int) -> None:
        """Save the state where that is due; obey a signal, unless the end is near anyway."""
        if done == plan.steps:
            return
        # Ranks may hear of a signal at different steps; a report is where they talk anyway.
        stop = (world.size == 1 or plan.reports(done)) and world.any(asked.signal is not None)
        if not (stop or _checkpoint_due(config, plan, done)):
            return
        state.outcome.seconds = time.perf_counter() - started
        everything, kept = state.saved(), {key: saved[key] for key in ("id", "started")}
        if world.main:
            with _dispensable(f"the checkpoint after step {done}"):
                checkpoints.save(done, {**kept, "state": everything})
        if stop:
            log.warning(
                "%s: stopping after step %d of %d; the same command goes on from there",
                *(asked.signal.name if asked.signal else "a signal", done, plan.steps),
            )
            asked.obey()

    started = time.perf_counter()
    if saved["state"] is not None:
        try:
            state.load(saved["state"])
        except ValueError as error:
            raise ConfigError(
                f"the checkpoint after step {saved['step']} in {checkpoints.folder} does not fit "
                f"({error}): run.force=true starts afresh"
            ) from error
        started -= state.outcome.seconds
    else:
        pruner.start()
        at(0)
        if 0 in plan.prune_at:
            at_rest(0)
    trained = replicas
    if config.trainer.compile:
        trained = cast(nn.Module, torch.compile(replicas))
    training = loop.train(
        trained,
        data.train,
        state.optimizer,
        compute,
        steps=plan.steps,
        lr_factor=lambda t: lr_factor(config.optimizer.lr_schedule, *plan.lr_place(t), plan.warmup),
        accumulate=config.trainer.accumulate,
        objective=objective,
        after_step=after_step,
        at_rest=at_rest,
        start=saved["step"],
        tally=state.tally,
        grad_clip=config.trainer.grad_clip,
        report=plan.reports,
    )
    title = f"{pruner.name} {pruner.target:g}"
    with progress_bar(title, plan.steps, shown=world.main) as advance:
        for now in training:
            values: dict[str, Value] = {
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
                settled = now.step >= plan.settled
                best = state.outcome.add(now.step, metrics, data.task, settled=settled)
                if best and config.trainer.save_model and world.main:
                    with _dispensable("the best model"):
                        runs.save_model(checkpoints.folder / "best.safetensors", model)
                values |= {f"test/{name}": value for name, value in metrics.items()}
                values |= {
                    f"layer_sparsity/{name}": 1 - kept / size
                    for name, (size, kept) in pruner.layer_counts.items()
                }
            if state.probe is not None and plan.measures(now.step):
                values |= state.probe.measure(now.step, pruner.masks)
            state.outcome.steps, state.outcome.seconds = now.step, time.perf_counter() - started
            tracker.log(now.step, values)
            advance(now.step, f"loss {now.loss:.3f}  sparsity {pruner.sparsity:.1%}")


def _checkpoint_due(config: RunConfig, plan: Plan, done: int) -> bool:
    """Whether a checkpoint is written after so many steps; pruning before training is kept too."""
    interval = config.run.checkpoint_interval
    if interval is None:
        return done == 0 or plan.evaluates(done)
    return interval > 0 and done % interval == 0


@contextmanager
def _dispensable(what: str) -> Iterator[None]:
    """A file that a run can do without: a full disk costs a warning, not the run."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        log.warning("%s can't be written (%s): the run goes on without", what, reason)


def _fresh(config: RunConfig, data: Data, device: torch.device) -> nn.Module:
    """The model with its initial weights, or those of ``model.checkpoint``."""
    torch.manual_seed(config.seed)
    model = model_of(config, data).to(device)
    torch.set_num_threads(config.threads or _threads_for(config, data, model, device))
    return model


def _threads_for(config: RunConfig, data: Data, model: nn.Module, device: torch.device) -> int:
    """One where a step is little work, else all."""
    small = sum(p.numel() for p in model.parameters()) < _SMALL
    if small and data.text is None:
        image = torch.zeros(1, data.channels, data.image_size, data.image_size, device=device)
        operations, _ = forward_flops(model, image, [], {})
        small = operations / 2 * config.trainer.batch_size < 64 * _SMALL
    return 1 if small else _ALL_THREADS


def _compute(config: RunConfig, data: Data, model: nn.Module, world: World) -> loop.Compute:
    device, layout = next(model.parameters()).device, loop.layout_for(model)
    return loop.Compute(device, config.trainer.precision, data.task, world, layout)


def _pretrain(config: RunConfig, data: Data, model: nn.Module) -> None:
    """Load the dense start that the config asks for, trained first if nobody has yet.

    Raises:
        DivergedError: Its loss is not finite any more.
    """
    pretrain, device = config.model.pretrain, next(model.parameters()).device
    if pretrain.epochs == 0:
        return
    identity = {
        "version": 2,
        "model": {k: v for k, v in runs.model_identity(config).items() if k != "freeze"},
        "dataset": runs.data_identity(config),
        "optimizer": config.optimizer.model_dump(exclude={"lr"}),
        "trainer": config.trainer.model_dump(
            include={"batch_size", "accumulate", "grad_clip", "precision"}
        ),
    }
    if plugins := runs.plugins_identity(config, *runs.START):
        identity["plugins"] = plugins

    def build() -> dict[str, Tensor]:
        torch.manual_seed(pretrain.seed)
        start = model_of(config, data).to(device)
        batches = data_of(config, pretrain.seed).train
        accumulate = config.trainer.accumulate
        steps = steps_of(pretrain.epochs, len(batches), accumulate)
        warmup = Plan.warmup_steps(config, steps)
        training = loop.train(
            start,
            batches,
            _optimizer(config, start, pretrain.lr),
            _compute(config, data, start, World()),
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


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let parameters stay as they are that a name or pattern means.

    Raises:
        ValueError: A pattern matches none.
    """
    named = dict(model.named_parameters())
    check_patterns("model.freeze:", patterns, list(named), "parameter")
    for name, parameter in named.items():
        if any(matches(name, pattern) for pattern in patterns):
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
    """The pruner of the config; keys that it does not read are left out."""
    rounds, schedule = config.pruner.rounds, config.schedule.name
    if config.pruner.levels > 1:
        rounds = config.pruner.levels * (rounds or 1)
        if schedule == "one_shot":
            # The first level would leave the others nothing to do.
            schedule = "exponential"
    if "schedule.name" in unread(Method.of(config)):
        schedule = "one_shot"  # as all curves are that have one place
    keywords = {
        "sparsity": config.sparsity,
        "begin_step": plan.begin,
        "end_step": plan.end if plan.when == "during" else None,
        "interval": plan.interval,
        "levels": config.schedule.levels,
        "rounds": rounds,
        "when": plan.when,
        "schedule": schedule,
        "scope": config.pruner.scope,
        "sparsities": config.pruner.sparsities,
        "pattern": config.pruner.pattern,
        "min_density": config.pruner.min_density,
        "include": config.pruner.include,
        "exclude": config.pruner.exclude,
        "exclude_defaults": config.pruner.exclude_defaults,
        "misfits": config.pruner.misfits,
        "optimizer": optimizer,
    }
    name, read = config.pruner.name, read_by(config.pruner.name, plan.when, schedule)
    given: dict[str, Any] = {key: keywords[key] for key in read}
    return create_pruner(name, model, **given, **config.pruner.arguments)


def _probe(config: RunConfig, data: Data, replicas: nn.Module, world: World) -> Probe | None:
    """What looks on, if anything is to, with the start measured; training seeds itself anew."""
    if config.analysis.every is None:
        return None
    chosen = config.pruner
    layers = prunable_layers(
        replicas, chosen.include, chosen.exclude, exclude_defaults=chosen.exclude_defaults
    )
    probe = Probe(layers, bins=config.analysis.bins, group=group_of(replicas))
    compute = _compute(config, data, replicas, world)
    torch.manual_seed(world.seed(config.seed))
    count = config.analysis.start_batches
    with progress_bar("measuring the start", count, shown=world.main) as advance:

        def batches() -> Iterator[Batch]:
            for done, batch in enumerate(itertools.islice(loop.endless(data.train), count)):
                advance(done, "")
                yield batch

        probe.begin(replicas, batches(), compute.fair_loss)
    return probe


def _facts(
    config: RunConfig, pruner: Pruner, model: nn.Module, device: torch.device
) -> dict[str, Any]:
    """What a record says of the run before it starts."""
    identity = runs.run_identity(config)
    return {
        "schema": runs.SCHEMA,
        "run_hash": runs.digest(identity),
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
        **runs.provenance(
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        ),
        "config": config.model_dump(),
        "unread": unread(Method.of(config)),
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
        "ended": runs.now(),
    }
