"""How much memory a run takes, from its config alone: a model without weights, and no data."""

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seven_exp import pruning
from seven_exp.config import ConfigError, Optimizer, Pruner, RunConfig, faults_of_the_user
from seven_exp.datasets import DATASETS
from seven_exp.datasets.corpora import CORPORA
from seven_exp.datasets.tokens import load_tokenizer
from seven_exp.messages import one_line
from seven_exp.models import factory, is_hub_model
from seven_exp.models.hub import source
from seven_exp.models.shards import open_shards, shards_in
from seven_exp.pruning import build_method
from seven_exp.pruning.criteria.score import GradientScore
from seven_exp.pruning.criteria.solver import GradientSolver, RegionalSolver, Solver
from seven_exp.pruning.layers import Layer
from seven_exp.pruning.memory import WalkPlan, planned_bytes, walk_of
from seven_exp.pruning.method import Method, Ranking
from seven_exp.pruning.structure import blocks_of
from seven_exp.runs import in_turn
from seven_exp.runs.build import check_length, data_of, optimizer_of
from seven_exp.runs.check import check
from seven_exp.runs.parts import freeze, prunable, pruner_of
from seven_exp.runs.plan import Plan
from seven_exp.runs.reads import Pruning
from seven_exp.tasks import Inputs, LanguageModelling
from seven_exp.training import optimizers
from seven_exp.training.world import device_of

_BATCHES = 10**6
"""Batches of an epoch: the number changes no memory, and every window fits into so many."""


class Need(NamedTuple):
    """Bytes that a run holds on each device.

    Attributes:
        parameters: Number of the model's parameters.
        prunable: Number of those that the pruner prunes.
        parts: What is held -> bytes.
        besides: What comes on top and is not counted.
        by_block: Whether one block at a time is on the device.
    """

    parameters: int
    prunable: int
    parts: dict[str, int]
    besides: tuple[str, ...]
    by_block: bool = False

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.parts.values())


def need_of(config: RunConfig, ranks: int = 1) -> Need:
    """The memory of a run.

    Args:
        config: A checked config.
        ranks: Number of processes that share weights, gradients and all states evenly.

    Raises:
        ConfigError: The model can't be built without weights, or the pruner does not fit it.
    """
    with faults_of_the_user():
        plan = Plan.of(config, _BATCHES)
        if plan.steps:
            return _of_training(config, plan, ranks)
        if ranks > 1:
            raise ConfigError(
                f"--ranks is {ranks}: only training is shared, and trainer.max_steps is 0; the "
                "nearest valid choice is 1"
            )
        return _of_pruning(config, plan)


def changes(config: RunConfig, need: Need, ranks: int, memory: int) -> Iterator[str]:
    """Single changes of the command with which a run fits into this many bytes.

    Args:
        config: The run's, which needs more.
        need: What it needs with this many ranks.
        ranks: Number of processes.
        memory: Bytes of each device.
    """
    if config.trainer.max_steps != 0 and _can_be_shared(config):
        yield f"--ranks {-(-need.total * ranks // memory)}"
    for words, changed in _candidates(config):
        if need_of(changed, ranks).total <= memory:
            yield words


def _can_be_shared(config: RunConfig) -> bool:
    shared = config.trainer.model_copy(update={"sharding": "fsdp"})
    try:
        check(config.model_copy(update={"trainer": shared}))
    except ConfigError:
        return False
    return True


def _candidates(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Changes that save memory, as on the command line."""
    model, pruner, chosen = config.model, config.pruner, config.optimizer
    if is_hub_model(model.name) and model.arguments.get("dtype", "float32") == "float32":
        half = model.model_copy(update={"dtype": "bfloat16"})
        yield "model.dtype=bfloat16", config.model_copy(update={"model": half})
    if pruner.arguments.get("moments") == "float32":
        half_moments = pruner.model_copy(update={"moments": "bfloat16"})
        yield "pruner.moments=bfloat16", config.model_copy(update={"pruner": half_moments})
    if config.trainer.max_steps != 0 and chosen.name != "sgd":
        own = {key: getattr(chosen, key) for key in Optimizer.model_fields}
        sgd = Optimizer(**own | {"name": "sgd", "momentum": 0.9, "nesterov": True})
        yield "optimizer=sgd", config.model_copy(update={"optimizer": sgd})
    if in_turn.allowed(config):
        return
    own = {key: getattr(pruner, key) for key in Pruner.model_fields}
    wanda = Pruner(**own | {"name": "wanda", "scope": None, "pattern": "unstructured"})
    for words, changed in (
        ("pruner.scope=per_layer", pruner.model_copy(update={"scope": "per_layer"})),
        ("pruner=wanda", wanda),
    ):
        blockwise = config.model_copy(update={"pruner": changed})
        if in_turn.allowed(blockwise):
            yield f"{words}, one block at a time", blockwise


def bare_model(config: RunConfig) -> nn.Module:
    """The model of a config on the meta device.

    Raises:
        ConfigError: It can't be built there.
        ValueError: It can't be built at all.
    """
    section, arguments = config.model, config.model.arguments
    properties = _for_model(config)
    make = factory(section.name, "text" if "head" in properties else "images")
    if "pretrained" in inspect.signature(make).parameters:
        arguments["pretrained"] = False
    try:
        with torch.device("meta"):
            return make(**properties, **arguments)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ConfigError(
            f"model.name is '{section.name}': it can't be built without weights "
            f"({one_line(error):.120}), so its memory can't be planned"
        ) from error


def _for_model(config: RunConfig) -> Mapping[str, Any]:
    """What a model must know of the data, which are read only if nothing else tells."""
    spec, arguments = DATASETS[config.dataset.name], config.dataset.arguments
    models_text = spec.head == LanguageModelling.head
    if spec.shape is None and not models_text:
        return data_of(config.dataset, config.trainer.batch_size, config.seed).for_model
    known = {} if spec.shape is None else dict(spec.shape(**arguments))
    if spec.head is None:
        return known
    # transformers' configurations know their own number of tokens.
    own = is_hub_model(config.model.name)
    words = 1 if own else len(load_tokenizer(arguments["tokenizer"]))
    length = {"vocab_size": words, "max_length": arguments["max_length"]}
    return {"num_classes": words, "head": spec.head, **length, **known}


def memory_of(device: str) -> tuple[int, str]:
    """Bytes of the device that a config names, and words for it.

    Raises:
        ConfigError: There is none here.
    """
    chosen = device_of(device)
    if chosen.type == "cuda":
        if (chosen.index or 0) >= (count := torch.cuda.device_count()):
            raise ConfigError(f"device is '{device}': the last one here is cuda:{count - 1}")
        found = torch.cuda.get_device_properties(chosen)
        return found.total_memory, f" of this {found.name}"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), " of this machine's RAM"


def _of_training(config: RunConfig, plan: Plan, ranks: int) -> Need:
    model, trainer = bare_model(config), config.trainer
    freeze(model, config.model.freeze)
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, gradients = _bytes(_tensors(model)), _bytes(trained)
    moments = _moments(config, model)
    optimizer = optimizer_of(config.optimizer, model, config.optimizer.lr)
    method, layers = _pruned(config, plan, model, optimizer)
    held = planned_bytes(method, [layer.weight for layer in layers], plan.when)
    parts = {
        "weights": weights,
        "gradients": gradients,
        f"state of the optimizer, {config.optimizer.name}": moments,
        f"masks of the pruner, {config.pruner.name}": held.masks,
        f"state of the pruner, {config.pruner.name}": held.state,
    }
    if trainer.distill or trainer.distill_hidden:
        parts["weights of the teacher"] = weights
    if trainer.ema is not None:
        parts["average of the weights"] = weights
    if trainer.sam_rho is not None:
        parts["weights before a step of SAM"] = gradients
    if plan.rewind == "weights":
        parts["weights and moments to rewind to"] = weights + (moments if plan.rewind_to else 0)
    besides = [_activations(config), "copies within a step"]
    if ranks > 1:
        besides.append("the weights that are gathered to compute with")
    if config.analysis.every is not None:
        besides.append("the measurements of analysis.every")
    if isinstance(method, Solver):
        besides.append(f"the inputs that {config.pruner.name} reads")
    each = {name: -(-size // ranks) for name, size in parts.items()}
    return Need(_count(model), _prunable(layers), each, tuple(besides))


def _of_pruning(config: RunConfig, plan: Plan) -> Need:
    model = bare_model(config)
    check_length(config, model)
    method, layers = _pruned(config, plan, model, None)
    by_block = in_turn.allowed(config) and _stored_by_block(config, model)
    walk, besides = None, [] if isinstance(method, Solver) else ["copies while masks are chosen"]
    if isinstance(method, Solver) or by_block:
        walk, besides = _walk(config, plan, model, by_block=by_block)
    if walk is not None and by_block:
        parts = {"weights outside the blocks": walk.outside, "weights of a block": walk.block}
        parts |= _of_walk(walk)
        return Need(_count(model), _prunable(layers), parts, tuple(besides), by_block=True)
    # What a solver computes from gradients is there for all layers before the first is pruned.
    evidence = Ranking(method.gradients()) if isinstance(method, GradientSolver) else method
    held = planned_bytes(evidence, [layer.weight for layer in layers], plan.when)
    parts = {"weights": _bytes(_tensors(model))}
    if isinstance(evidence, Ranking) and isinstance(evidence.score, GradientScore):
        parts["gradients of the prunable weights"] = _bytes(layer.weight for layer in layers)
        besides.insert(0, _activations(config))
    parts[f"masks of the pruner, {config.pruner.name}"] = held.masks
    parts[f"state of the pruner, {config.pruner.name}"] = held.state
    if walk is not None:
        parts |= _of_walk(walk)
    return Need(_count(model), _prunable(layers), parts, tuple(besides))


def _pruned(
    config: RunConfig, plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[Method, list[Layer]]:
    """The method of the config's pruner, and the layers that it prunes."""
    if config.pruner.pattern == "coupled":
        # Only a pass with weights tells which of them belong together; most do.
        method = build_method(config.pruner.name, config.pruner.arguments)
        return method, prunable(config, model)
    pruner = _pruner(config, plan, model, optimizer)
    return pruner.method, list(pruner.layers)


def _pruner(
    config: RunConfig, plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> pruning.Pruner:
    def no_example() -> Inputs:
        raise AssertionError("only a coupled pattern needs one")

    return pruner_of(config, plan, model, optimizer, no_example)


def _walk(
    config: RunConfig, plan: Plan, model: nn.Module, *, by_block: bool
) -> tuple[WalkPlan | None, list[str]]:
    """The plan of a walk through the blocks, and what it can't count."""
    section = config.calibration
    solved = Pruning.of(config).calibrated and config.pruner.pattern != "coupled"
    if not (solved or by_block) or not blocks_of(model):
        return None, [f"the inputs that {config.pruner.name} reads"]
    sizes, besides = [], list[str]()
    if solved and section is not None:
        sizes.append((section.samples, section.length))
    if by_block:
        corpus = CORPORA[config.dataset.name.removeprefix("lm/")]
        length = config.dataset.arguments["max_length"]
        blocks = corpus.blocks or (corpus.tokens or 0) // length
        if not blocks:
            more = f", if it has more than {section.samples} blocks" if solved and section else ""
            besides.append(f"inputs of the evaluation{more}")
        sizes.append((blocks, length))
    pruner = _pruner(config, plan, model, None)
    if isinstance(pruner.method, RegionalSolver):
        besides.append("a block's activations and gradients")
    plans = [walk_of(pruner, model, sequences=n, length=length) for n, length in sizes]
    return max(plans, key=lambda walk: walk.total), besides


def _of_walk(walk: WalkPlan) -> dict[str, int]:
    return {
        "statistics of a block's inputs": walk.statistics,
        "inputs of a block, all sequences": walk.inputs,
        "work on a layer or a sequence, at most": max(walk.solving, walk.passing),
    }


def _stored_by_block(config: RunConfig, model: nn.Module) -> bool:
    """Whether the weights can be read block by block; a hub's are not looked at."""
    folder = Path(source("model.name", config.model.name))
    if not folder.is_dir() or shards_in(folder) is None:
        return True
    return open_shards(config.model.name, model) is not None


def _moments(config: RunConfig, model: nn.Module) -> int:
    """Bytes of the optimizer's state.

    Raises:
        ConfigError: It can't take a step without weights.
    """
    try:
        return optimizers.planned_bytes(optimizer_of(config.optimizer, model, config.optimizer.lr))
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"optimizer.name is '{config.optimizer.name}': it can't take a step without weights "
            f"({one_line(error):.120}), so its memory can't be planned"
        ) from error


def _activations(config: RunConfig) -> str:
    size = f"trainer.batch_size={config.trainer.batch_size}"
    if config.calibration is not None and Pruning.of(config).calibrated:
        size = f"calibration.batch_size={config.calibration.batch_size}"
    if config.trainer.gradient_checkpointing or not is_hub_model(config.model.name):
        return f"activations of {size}"
    return f"activations of {size} (less with trainer.gradient_checkpointing=true)"


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _prunable(layers: Iterable[Layer]) -> int:
    return sum(layer.weight.numel() for layer in layers)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
