"""Checks of a config that need no data or model: names, arguments, windows, folders."""

import re
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from seven_exp import datasets, models
from seven_exp.config import ConfigError, RunConfig, check_arguments, faults_of_the_user
from seven_exp.datasets import DATASETS, TRANSFORMS, held_out, limited, text_head
from seven_exp.datasets.calibration import check_calibration
from seven_exp.datasets.perplexity import is_one_text
from seven_exp.messages import nearest
from seven_exp.pruning import PRUNERS, build_method
from seven_exp.pruning.allocation import SCOPES
from seven_exp.pruning.create import check_scope
from seven_exp.pruning.method import check_pattern, check_sharded
from seven_exp.pruning.patterns import parse_pattern
from seven_exp.pruning.schedules import SCHEDULES
from seven_exp.runs.plan import Plan
from seven_exp.runs.plugins import load_plugins
from seven_exp.runs.reads import Pruning
from seven_exp.tasks import METRICS, LanguageModelling
from seven_exp.tracking import TRACKERS
from seven_exp.training.harness import task_files
from seven_exp.training.lr_schedules import LR_SCHEDULES
from seven_exp.training.optimizers import OPTIMIZERS, check_optimizer


def check(config: RunConfig) -> None:
    """Load the config's plugins and check everything that it names.

    Raises:
        ConfigError: It has faults; the message lists all that can be found at once.
    """
    load_plugins(config.plugins)
    # A dictionary removes repeated messages about one unknown name.
    faults: dict[str, None] = {}
    for part in (
        _pruner,
        _scope,
        _pattern,
        _dataset,
        _training_text,
        _calibration,
        _evaluation,
        _model,
        _optimizer,
        _lr_schedule,
        _teacher,
        _sharding,
        _plan,
        _contrasts,
        _trackers,
    ):
        faults |= dict.fromkeys(_faults(part, config))
    if faults:
        raise ConfigError(*(_with_hint(fault, config) for fault in faults))


def _faults(part: Callable[[RunConfig], None], config: RunConfig) -> tuple[str, ...]:
    try:
        with faults_of_the_user():
            part(config)
    except ConfigError as error:
        return error.args
    return ()


def _with_hint(fault: str, config: RunConfig) -> str:
    """A YAML's name that nothing has registered is a plugin's: say that it is not loaded."""
    kinds = ("pruner", "model", "dataset", "optimizer", "schedule")
    unknown = tuple(f"unknown {kind} '{getattr(config, kind).name}'" for kind in kinds)
    if config.plugins or not fault.startswith(unknown):
        return fault
    return f"{fault} (a name of your own needs plugins=[FILE])"


def _pruner(config: RunConfig) -> None:
    name, arguments = config.pruner.name, config.pruner.arguments
    check_arguments("pruner", name, PRUNERS[name].make, arguments)
    try:
        method = build_method(name, arguments)
    except ValueError as error:
        # The message begins with a keyword; callers from Python have no config groups.
        if str(error).partition(" ")[0] in arguments:
            raise ValueError(f"pruner.{error}") from error
        raise
    pruning = Pruning.of(config)
    check_scope(name, method, pruning.scope, pruning.when, pruning.updates)
    check_pattern(method, parse_pattern(config.pruner.pattern))


def _scope(config: RunConfig) -> None:
    SCOPES[config.pruner.scope or PRUNERS[config.pruner.name].scope]


def _pattern(config: RunConfig) -> None:
    parse_pattern(config.pruner.pattern)


def _dataset(config: RunConfig) -> None:
    name, arguments = config.dataset.name, config.dataset.arguments
    check_arguments("dataset", name, DATASETS[name].load, arguments, {"batch_size", "seed"})
    datasets.check_data(name, **arguments)
    for metric in config.dataset.metrics:
        METRICS[metric]
    for chosen, keywords in (config.dataset.transforms or {}).items():
        if text_head(name):
            raise ConfigError(f"dataset.transforms: they are for images, and {name} is text")
        make = TRANSFORMS[chosen].make
        check_arguments(f"dataset.transforms.{chosen}", chosen, make, keywords or {})


def _training_text(config: RunConfig) -> None:
    """Find a run that would train, or take gradients, on the text of its evaluation."""
    place = config.dataset.arguments.get("data_dir")
    if not is_one_text(config.dataset.name, place):
        return
    if Pruning.of(config).reads_training:
        raise ConfigError(
            f"dataset.data_dir is '{place}': perplexity is measured on this text, so nothing may "
            "be trained on it; give a folder with train.txt and test.txt"
        )


def _calibration(config: RunConfig) -> None:
    section = config.calibration
    if section is None or not Pruning.of(config).calibrated:
        return
    if text_head(config.dataset.name) != "language_modelling":
        raise ConfigError(
            f"calibration is '{section.name}': it is for language models, and dataset "
            f"{config.dataset.name} has another task; choose dataset=lm/wikitext2 or "
            "calibration=null"
        )
    check_calibration(section.name, data_dir=section.data_dir)


def _evaluation(config: RunConfig) -> None:
    section, name = config.evaluation, config.model.name
    if not section.tasks:
        return
    head = text_head(config.dataset.name)
    if head != LanguageModelling.head or not models.is_hub_model(name):
        raise ConfigError(
            f"evaluation.tasks are for transformers' language models, not for {name} on "
            f"{config.dataset.name}; choose dataset=lm/wikitext2 or evaluation.tasks=[]"
        )
    task_files(section)


def _model(config: RunConfig) -> None:
    name, checkpoint = config.model.name, config.model.checkpoint
    DATASETS[config.dataset.name]
    head = text_head(config.dataset.name)
    make = models.factory(name, "text" if head else "images")
    check_arguments("model", name, make, config.model.arguments)
    if head and config.pruner.name == "synflow":
        raise ConfigError("pruner.name is 'synflow': it replaces inputs by ones, unlike text")
    if config.trainer.gradient_checkpointing and not models.is_hub_model(name):
        raise ConfigError(
            f"trainer.gradient_checkpointing is true: only transformers' models support it, not "
            f"{name}; choose false"
        )
    if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
        raise ConfigError(f"model.checkpoint is '{checkpoint}': no such file")
    models.check_model(name, head, **config.model.arguments)


def _optimizer(config: RunConfig) -> None:
    name = config.optimizer.name
    check_arguments("optimizer", name, OPTIMIZERS[name], config.optimizer.arguments, {"matrices"})
    check_optimizer(name)


def _lr_schedule(config: RunConfig) -> None:
    name, options = config.optimizer.lr_schedule, config.optimizer.lr_options or {}
    check_arguments("optimizer.lr_options", name, LR_SCHEDULES[name], options)
    LR_SCHEDULES[name](0, 1, 0, **options)


def _teacher(config: RunConfig) -> None:
    trainer, model = config.trainer, config.model
    if trainer.label_smoothing and text_head(config.dataset.name) not in (None, "classification"):
        raise ConfigError(
            f"trainer.label_smoothing is {trainer.label_smoothing}: it needs classes; choose 0"
        )
    if trainer.sam_rho and trainer.precision == "fp16":
        raise ConfigError(
            f"trainer.sam_rho is {trainer.sam_rho}: its gradients would be scaled in fp16; choose "
            "trainer.precision=bf16"
        )
    if trainer.distill and text_head(config.dataset.name) not in (None, "classification"):
        raise ConfigError(f"trainer.distill is {trainer.distill}: it needs classes; choose 0")
    trained = model.checkpoint or model.pretrain.epochs or model.arguments.get("pretrained")
    for key in ("distill", "distill_hidden"):
        if (weight := getattr(trainer, key)) and not trained:
            raise ConfigError(
                f"trainer.{key} is {weight}: the teacher would be untrained; "
                "give model.pretrain.epochs, model.pretrained or model.checkpoint"
            )
    if trainer.distill_hidden and trainer.compile:
        raise ConfigError(
            "trainer.distill_hidden does not work on a compiled model: choose trainer.compile=false"
        )


def _sharding(config: RunConfig) -> None:
    """Find what needs whole weights, which no process holds."""
    trainer, pruner = config.trainer, config.pruner
    if trainer.sharding == "none":
        return
    pruning = Pruning.of(config)
    if pruning.prunes:
        method, pattern = build_method(pruner.name, pruner.arguments), parse_pattern(pruner.pattern)
        try:
            check_sharded(pruner.name, method, pruning.scope, pattern)
        except ValueError as error:
            raise ConfigError(f"trainer.sharding is '{trainer.sharding}': {error}") from error
    for key, needs_whole, other in _WHOLE:
        value: Any = reduce(getattr, key.split("."), config)
        if needs_whole(value):
            raise ConfigError(
                f"{key} is {value}: it does not work with trainer.sharding=fsdp; choose {other}"
            )


_WHOLE: Sequence[tuple[str, Callable[[Any], bool], str]] = (
    ("trainer.ema", bool, "null"),
    ("trainer.sam_rho", bool, "null"),
    ("trainer.distill", bool, "0"),
    ("trainer.distill_hidden", bool, "0"),
    ("trainer.compile", bool, "false"),
    ("trainer.precision", "fp16".__eq__, "bf16"),
    ("optimizer.name", "muon".__eq__, "adamw"),
    ("analysis.every", bool, "null"),
)
"""Key, whether a value of it needs whole weights, and a value that does not."""


def _contrasts(config: RunConfig) -> None:
    """Find misspelt pruners; only a comparison knows the settings that distinguish methods."""
    for contrast in config.compare.contrasts:
        # A setting in a method's name may hold a colon: "magnitude pruner.pattern=2:4".
        splits = [(contrast[: m.start()], contrast[m.end() :]) for m in re.finditer(":", contrast)]
        named = [[method.split()[0] for method in pair if method.strip()] for pair in splits]
        if not any(len(pair) == 2 and all(name in PRUNERS for name in pair) for pair in named):
            unknown = next(name for name in named[0] if name not in PRUNERS)
            raise ConfigError(
                f"compare.contrasts holds '{contrast}': unknown pruner '{unknown}': "
                f"{nearest(unknown, PRUNERS)}"
            )


def _trackers(config: RunConfig) -> None:
    for name in config.tracker.also:
        TRACKERS[name](config.tracker)


def _plan(config: RunConfig) -> None:
    SCHEDULES[config.schedule.name]
    images = DATASETS[config.dataset.name].train_size
    if images is not None or config.trainer.max_steps is not None:
        images = images and images - held_out(images, config.dataset.validation)
        images = images and limited(images, config.dataset.limit)
        Plan.of(config, max(1, (images or 0) // config.trainer.batch_size))
