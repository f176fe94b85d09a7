"""The schema of ``conf/``: every key and range, checked before data or a model is touched.

Groups hold their own keys plus the keyword arguments of what they name (a criterion, a model, a
data set, an optimizer), checked against its signature: a new one brings its own schema.
"""

import functools
import inspect
import json
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from seven_exp.plugins import import_plugin
from seven_exp.registry import nearest

Fraction = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=0, strict=True)] | Annotated[Fraction, Field(strict=True)]
"""An integer counts steps; a decimal is a fraction of the training."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator takes."""

DIGITS = 15
"""Significant digits of a number: as many as each float holds, so that rounding noise is none.

A range such as ``range(0.1,0.5,0.1)`` gives 0.30000000000000004 for what is written as 0.3.
"""


class ConfigError(ValueError):
    """The user's mistake, in one line."""


_RULES = ConfigDict(protected_namespaces=(), allow_inf_nan=False)


class _Section(BaseModel):
    model_config = ConfigDict(**_RULES, extra="forbid", frozen=True)


class _Named(_Section):
    """A section that also holds the keyword arguments of what it names."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What is passed on to the thing of this name."""
        return dict(self.model_extra or {})


class Pretrain(_Section):
    """Dense training that the run starts from."""

    epochs: Annotated[int, Field(ge=0)]
    lr: Annotated[float, Field(gt=0)]
    seed: Seed


class Model(_Named):
    """conf/model."""

    pretrain: Pretrain
    checkpoint: str | None
    freeze: list[str]


class Dataset(_Named):
    """conf/dataset."""


class Pruner(_Named):
    """conf/pruner."""

    when: Literal["before", "during", "after"] | None
    scope: str | None
    sparsities: dict[str, Annotated[float, Field(ge=0, lt=1)]] | None
    pattern: str
    min_density: Annotated[float, Field(ge=0, lt=1)]
    include: list[str] | None
    exclude: list[str] | None
    exclude_defaults: bool
    misfits: Literal["error", "dense"]
    rounds: Annotated[int, Field(ge=1)] | None
    batches_per_round: Annotated[int, Field(ge=1)] | None
    finetune_steps: Steps
    levels: Annotated[int, Field(ge=1)]
    rewind: Literal["none", "lr", "weights"]


class Schedule(_Section):
    """conf/schedule."""

    name: str
    begin_step: Steps
    end_step: Steps
    interval: Annotated[int, Field(ge=1, strict=True)] | Annotated[Fraction, Field(strict=True)]
    levels: Annotated[int, Field(ge=1)] | None


class Optimizer(_Named):
    """conf/optimizer."""

    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    lr_schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: Steps


class Trainer(_Section):
    """conf/trainer."""

    epochs: Annotated[int, Field(ge=1)] | None
    max_steps: Annotated[int, Field(ge=1)] | None
    batch_size: Annotated[int, Field(ge=1)]
    accumulate: Annotated[int, Field(ge=1)]
    distill: Fraction
    distill_hidden: Annotated[float, Field(ge=0)]
    distill_temperature: Annotated[float, Field(gt=0)]
    grad_clip: Annotated[float, Field(gt=0)] | None
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    compile: bool
    log_interval: Annotated[int, Field(ge=1)]
    eval_interval: Annotated[int, Field(ge=1)] | None
    save_model: bool


class Analysis(_Section):
    """What a run measures of its gradients and masks."""

    every: Annotated[int, Field(ge=1, strict=True)] | None
    start_batches: Annotated[int, Field(ge=0)]
    bins: Annotated[int, Field(ge=2, le=512)]


class Tracker(_Section):
    """conf/tracker; where a key is null, W&B's own settings decide."""

    mode: Literal["online", "offline", "disabled"] | None
    project: str | None
    entity: str | None
    group: str | None
    tags: list[str] | None


class Run(_Section):
    """Whether and how a run is done, which changes nothing about its result."""

    skip_finished: bool | None
    force: bool
    wait: Annotated[float, Field(ge=0)]
    checkpoint_interval: Annotated[int, Field(ge=0)] | None
    keep: Annotated[int, Field(ge=1)]


class RunConfig(_Section):
    """One run, as Hydra composed it."""

    sparsity: Annotated[float, Field(ge=0, lt=1)]
    seed: Seed
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1)] | None
    output_root: str
    cache_dir: str
    plugins: list[str]
    run: Run
    model: Model
    dataset: Dataset
    pruner: Pruner
    schedule: Schedule
    optimizer: Optimizer
    trainer: Trainer
    analysis: Analysis
    tracker: Tracker


def parse(values: Mapping[str, Any]) -> RunConfig:
    """The composed config, resolved, as typed values.

    Raises:
        ConfigError: A key or value is not valid; the message names it and the nearest valid choice.
    """
    values = {key: _plain(value, key) for key, value in values.items()}
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, RunConfig)) from None
    read = config.model_dump()
    for key, value in values.items():
        _check_truth(value, read[key], key)
    return config


def check(config: RunConfig) -> None:
    """Check all that can be checked without data and model: names, arguments, windows, folders.

    Raises:
        ConfigError: The first fault found.
    """
    from seven_exp.datasets import DATASETS, TRAIN_SIZES, check_data, text_head
    from seven_exp.models import check_model, factory, is_hub_model
    from seven_exp.pruning import PRUNERS, build_method
    from seven_exp.pruning.allocation import SCOPES
    from seven_exp.pruning.patterns import parse_pattern
    from seven_exp.pruning.schedules import SCHEDULES
    from seven_exp.training.optimizers import OPTIMIZERS
    from seven_exp.training.plan import Plan

    load_plugins(config.plugins)
    with faults_of_the_user():
        spec = PRUNERS[config.pruner.name]
        SCHEDULES[config.schedule.name]
        SCOPES[config.pruner.scope or spec.scope]
        parse_pattern(config.pruner.pattern)
        check_arguments("pruner", config.pruner.name, spec.make, config.pruner.arguments)
        try:
            build_method(config.pruner.name, config.pruner.arguments)
        except ValueError as error:
            # Its words begin with a keyword of its own; who calls it from Python has no group.
            if str(error).partition(" ")[0] in config.pruner.arguments:
                raise ValueError(f"pruner.{error}") from error
            raise
        load = DATASETS[config.dataset.name]
        head = text_head(config.dataset.name)
        make = factory(config.model.name, "text" if head else "images")
        check_arguments("model", config.model.name, make, config.model.arguments)
        check_arguments(
            "dataset", config.dataset.name, load, config.dataset.arguments, {"batch_size", "seed"}
        )
        if head and config.pruner.name == "synflow":
            raise ConfigError("pruner.name is 'synflow': it feeds the model ones, not text")
        if head not in (None, "classification") and config.trainer.distill:
            raise ConfigError(
                f"trainer.distill is {config.trainer.distill}: it needs classes; choose 0"
            )
        if config.trainer.gradient_checkpointing and not is_hub_model(config.model.name):
            raise ConfigError(
                f"trainer.gradient_checkpointing is true: {config.model.name} has no such thing, "
                "transformers' models have; choose false"
            )
        optimizer = OPTIMIZERS[config.optimizer.name]
        check_arguments("optimizer", config.optimizer.name, optimizer, config.optimizer.arguments)
        checkpoint = config.model.checkpoint
        if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
            raise ConfigError(f"model.checkpoint is '{checkpoint}': no such file")
        trained = (
            checkpoint or config.model.pretrain.epochs or config.model.arguments.get("pretrained")
        )
        for key in ("distill", "distill_hidden"):
            if (weight := getattr(config.trainer, key)) and not trained:
                raise ConfigError(
                    f"trainer.{key} is {weight}: the teacher would be untrained; "
                    "give model.pretrain.epochs, model.pretrained or model.checkpoint"
                )
        if config.trainer.distill_hidden and config.trainer.compile:
            raise ConfigError(
                "trainer.distill_hidden can't look into a compiled model: choose "
                "trainer.compile=false"
            )
        check_data(config.dataset.name, **config.dataset.arguments)
        check_model(config.model.name, head)
        images = TRAIN_SIZES.get(config.dataset.name)
        if images is not None or config.trainer.max_steps is not None:
            Plan.of(config, max(1, (images or 0) // config.trainer.batch_size))


def load_plugins(plugins: Sequence[str]) -> None:
    """Import Python files or modules, which register what they define.

    Raises:
        ConfigError: One can't be found or imported.
    """
    for plugin in plugins:
        try:
            import_plugin(plugin)
        except Exception as error:
            raise ConfigError(f"plugins: can't import '{plugin}': {error}") from error


def check_arguments(
    group: str,
    name: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    given: Collection[str] = (),
) -> None:
    """Check keyword arguments against a signature's names and annotations.

    Args:
        group: Of the config.
        name: What the function is registered as.
        function: It takes the group's keys as keyword-only arguments.
        arguments: The group's keys.
        given: Keyword-only arguments that come from elsewhere.

    Raises:
        ConfigError: An argument is unknown, missing or of the wrong type.
    """
    schema = _schema(name, function, frozenset(given))
    for key in arguments:
        if key not in schema.model_fields:
            known = schema.model_fields
            hint = nearest(key, known) if known else "it takes none"
            raise ConfigError(f"{group}.{key}: {name} has no such key: {hint}")
    try:
        # As JSON, since a list may stand for a tuple. Strict: the function gets what is written.
        schema.model_validate_json(json.dumps(arguments), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{group}.{_explain(error, schema)}") from None


@functools.cache
def _schema(name: str, function: Callable[..., Any], given: frozenset[str]) -> type[BaseModel]:
    """The keyword-only arguments of a function as a model of pydantic's."""
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in given
    }
    return create_model(name, __config__=_RULES, **fields)


def _plain(value: Any, key: str) -> Any:
    """A value without the rounding noise of its numbers.

    Raises:
        ConfigError: An integer is larger than any that torch can take.
    """
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, key) for v in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key} is too large an integer: 64 bits have to do")
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _check_truth(written: Any, read: Any, key: str) -> None:
    """Raise ConfigError where true or false is read as a number: to pydantic they are 1 and 0."""
    if isinstance(written, Mapping):
        for inner, value in written.items():
            _check_truth(value, read[inner], f"{key}.{inner}")
    elif isinstance(written, bool) and not isinstance(read, bool):
        raise ConfigError(f"{key} is {written}: it should be a number, not true or false")


@contextmanager
def faults_of_the_user() -> Iterator[None]:
    """Turns a ValueError or OSError raised inside into a ConfigError with the same words."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first fault in one line: key, value, and what would be valid."""
    fault = error.errors()[0]
    path = [part for part in fault["loc"] if isinstance(part, str) and _is_key(part)]
    key = ".".join(path)
    value = fault["input"]
    if fault["type"] == "extra_forbidden":
        return f"{key}: no such key: {nearest(path[-1], _keys(schema, path[:-1]))}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    limits = fault.get("ctx", {})
    words = fault["msg"].replace("Input should be", "it should be").partition(", unable")[0]
    if fault["type"] == "literal_error" and isinstance(value, str):
        choices = [c.strip("'") for c in limits["expected"].replace(" or ", ", ").split(", ")]
        words = nearest(value, choices)
    elif key == "sparsity":
        words = "choose a fraction of zeros from 0 up to, not including, 1, such as 0.9"
    elif key == "device":
        words = "choose auto, cpu, mps, cuda or cuda:N"
    elif "ge" in limits:
        words += f"; the nearest valid choice is {limits['ge']}"
    elif "constrained-int" in fault["loc"]:  # a branch of `Steps`
        words = "give an integer for steps, or a decimal up to 1 for a fraction of the training"
    return f"{key} is {value!r}: {words[0].lower() + words[1:]}"


def _is_key(part: str) -> bool:
    """Whether a piece of pydantic's location is a key, not the name of a union's branch."""
    return part.isidentifier() and part not in {"int", "float", "constrained"}


def _keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        annotation = schema.model_fields[part].annotation
        assert isinstance(annotation, type)
        schema = annotation
    return list(schema.model_fields)
