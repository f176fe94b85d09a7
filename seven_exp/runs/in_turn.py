"""Prunes a language model as it is, one block at a time: read, prune, write, free.

Memory holds one block, its statistics and the inputs of the next, whatever the depth. A block is
finished when its file exists, so a run that was killed continues with the next one.
"""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.config import RunConfig, faults_of_the_user
from seven_exp.console import progress_bar
from seven_exp.datasets import Batches, Data, text_head
from seven_exp.files.atomic import clear_partial, disk_errors
from seven_exp.files.joining import join_tensors
from seven_exp.models import is_hub_model
from seven_exp.models.hub_models import fitting_config, generating
from seven_exp.models.shards import (
    INDEX,
    Shards,
    bare_model,
    can_stream,
    clear,
    on_meta,
    open_shards,
    place,
)
from seven_exp.pruning import NoEvidenceError, Pruner, build_method, prunes_by_block
from seven_exp.pruning.layerwise import inference, side_by_side
from seven_exp.pruning.structure import blocks_of
from seven_exp.runs import artifacts, provenance
from seven_exp.runs.build import calibration_of, check_length, data_of, first_example, first_inputs
from seven_exp.runs.parts import prunable, pruner_of
from seven_exp.runs.plan import Plan
from seven_exp.runs.reads import Pruning
from seven_exp.runs.record import facts_of, recorded
from seven_exp.tasks import LanguageModelling
from seven_exp.tracking import Tracker, described, writing
from seven_exp.training.checkpoints import digest_of
from seven_exp.training.compute import Compute
from seven_exp.training.evaluation import split_loss
from seven_exp.training.flops import forward_flops
from seven_exp.training.freed_memory import return_freed_memory
from seven_exp.training.harness import Harness, metrics_of
from seven_exp.training.interruption import Interruption, postponed
from seven_exp.training.loop import DivergedError
from seven_exp.training.state import Outcome
from seven_exp.training.world import World

log = logging.getLogger(__name__)

_SCOPES = ("per_row", "per_layer")
"""Scopes in which no layer competes with one of another block."""


def saves_folder(config: RunConfig) -> bool:
    """Whether the model is saved as transformers' folder: a language model pruned as it is."""
    reads = text_head(config.dataset.name) == LanguageModelling.head
    return config.trainer.max_steps == 0 and reads and is_hub_model(config.model.name)


@dataclass
class InTurn:
    """A run that reads, prunes and writes one block after another.

    Attributes:
        config: A checked config.
        data: Its test split is evaluated.
        calibration: The batches that the pruner reads, if it reads any.
        departures: From the published protocol.
        harness: Zero-shot tasks.
        compute: Device, precision and task.
        model: Its blocks are on the meta device unless they are held; the rest is on the device.
        shards: The files of the checkpoint.
        pruner: Of the model.
        parameters: For each block the names of its parameters.
        zeros: For each block that was evaluated, and for the rest, the number of its zeros.
    """

    config: RunConfig
    data: Data
    calibration: Batches | None
    departures: list[str]
    harness: Harness
    compute: Compute
    model: nn.Module
    shards: Shards
    pruner: Pruner
    blocks: list[nn.Module]
    parameters: dict[nn.Module, list[str]]
    zeros: dict[nn.Module, int] = field(default_factory=dict)

    @property
    def rest(self) -> list[str]:
        """The names of the parameters outside all blocks."""
        inside = {name for names in self.parameters.values() for name in names}
        return [name for name in self.shards.files if name not in inside]

    def file(self, number: int) -> str:
        """The name of the file of block ``number``; the rest has number -1."""
        return f"model-{number + 2:05d}-of-{len(self.blocks) + 1:05d}.safetensors"

    @contextmanager
    def held(self, block: nn.Module, source: Shards) -> Iterator[None]:
        """A block with its weights on the device within the context."""
        names = self.parameters[block]
        with faults_of_the_user():
            place(self.model, source.read(names, self.model.state_dict()), self.compute.device)
        yield
        clear(self.model, names)
        return_freed_memory()

    def stored(self, folder: Path, number: int) -> Shards:
        """The file of a block in the run's own folder."""
        names = self.rest if number < 0 else self.parameters[self.blocks[number]]
        return Shards(folder, {n: (self.file(number), self.shards.files[n][1]) for n in names})

    def write(self, folder: Path, number: int, names: list[str]) -> None:
        """Write the masks of a block, then its weights: with these it is finished.

        Raises:
            RecordError: The folder can't be written.
        """
        state, prunable = self.model.state_dict(), self.pruner.layer_counts
        masks = {n: torch.ones_like(state[n], dtype=torch.bool) for n in names if n in prunable}
        # A weight that no batch uses stays dense.
        masks |= self.pruner.take_masks(masks.keys())
        for name, mask in masks.items():
            if state[name][~mask].any():
                raise RuntimeError(f"{name} is not zero where its mask prunes it")
        with writing(folder):
            if masks:
                artifacts.save_masks(folder / "masks" / self.file(number), masks)
            artifacts.save_tensors(
                folder / self.file(number), {self.shards.files[n][1]: state[n] for n in names}
            )


def opened(config: RunConfig, world: World, device: torch.device) -> InTurn | None:
    """Open a run, if its model can be pruned block by block; None: it must be in memory.

    Raises:
        ConfigError: A fault that only data and model can reveal.
    """
    if not allowed(config) or world.size > 1:
        return None
    with faults_of_the_user():
        data = data_of(config.dataset, config.trainer.batch_size, config.seed)
        assert data.text is not None
        settings = fitting_config(
            *(config.model.name, "language_modelling", data.text.vocab_size, data.text.max_length),
            biases=config.model.biases,
        )
        dtype = config.model.arguments.get("dtype", "float32")
        model = generating(on_meta(settings, dtype), config.model.name)
        check_length(config, model)
        shards, blocks = open_shards(config.model.name, model), blocks_of(model)
        if shards is None or not blocks:
            log.info("the weights can't be read block by block: the model is pruned in memory")
            return None
        calibration, departures = calibration_of(config)
        harness = Harness.of(config.evaluation)
        example = partial(first_example, data.test, device)
        pruner = pruner_of(config, Plan.of(config, 1), model, None, example)
    paths = {module: path for path, module in model.named_modules()}
    return InTurn(
        config=config,
        data=data,
        calibration=calibration,
        departures=[*data.task.departures, *departures, *harness.departures],
        harness=harness,
        compute=Compute(device, config.trainer.precision, data.task),
        model=model,
        shards=shards,
        pruner=pruner,
        blocks=blocks,
        parameters={
            block: [name for name in shards.files if name.startswith(f"{paths[block]}.")]
            for block in blocks
        },
    )


def allowed(config: RunConfig) -> bool:
    """Whether the config allows it: at most one round, which reads stored blocks one by one."""
    pruning, model = Pruning.of(config), config.model
    if not (saves_folder(config) and config.trainer.save_model):
        return False
    stored = model.arguments.get("pretrained", True) and model.checkpoint is None
    apart = (
        pruning.outside_training
        and (pruning.calibrated or not pruning.needs_batches)
        and prunes_by_block(build_method(config.pruner.name, config.pruner.arguments))
        and pruning.updates == 1
        and pruning.scope in _SCOPES
        and config.pruner.pattern != "coupled"
    )
    return (
        (apart or not pruning.prunes)
        and stored
        and model.pretrain.epochs == 0
        and config.analysis.every is None
        and can_stream()
    )


def run(turn: InTurn, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Prune, save and evaluate, and always leave a record in ``folder``.

    Raises:
        ConfigError: The checkpoint is broken.
        DivergedError: There is no evidence for the masks, or the outputs are broken; the record
            says so.
        InterruptedRun: A signal asked for it; the record says so.
        RecordError: The folder can't be written.
    """
    config, pruner, model = turn.config, turn.pruner, turn.model
    return_freed_memory()
    log.info("%s", pruner.coverage)
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    with faults_of_the_user():
        device = turn.compute.device
        place(model, turn.shards.read(turn.rest, model.state_dict()), device)
        # Buffers that no file holds.
        place(model, [(name, b) for name, b in model.named_buffers() if not b.is_meta], device)
    model.tie_weights()  # type: ignore[operator]
    plan = Plan.of(config, 1)
    facts = facts_of(config, model, pruner, turn.data, plan, turn.departures, device)
    outcome = Outcome(turn.data.task.metric)
    facts |= {"started": provenance.now(), "sha256": {}}
    worse = turn.data.task.lower_is_better
    tracker.start(described(facts, folder, lower_is_better=worse, id=uuid.uuid4().hex[:8]))
    since = time.perf_counter()
    with postponed() as asked, recorded(tracker, facts, pruner, outcome) as record:
        try:
            _prune(turn, folder, asked)
            # After the folder has its name: until then a run that is killed needs them.
            shutil.rmtree(folder / artifacts.FOLDER / "masks", ignore_errors=True)
            outcome.seconds_pruning = time.perf_counter() - since
            outcome.metrics = _evaluate(turn, folder, asked)
        finally:
            outcome.seconds = time.perf_counter() - since
        if turn.harness.tasks:
            facts["harness"] = _zero_shot(turn, folder, asked)
            outcome.metrics |= metrics_of(facts["harness"])
        tracker.log(0, {"sparsity": pruner.sparsity, **_shown(turn, outcome)})
        total = sum(turn.zeros.values())
        facts |= {"params_zero": total, "zeros_total": total / facts["params_total"]}
        facts |= _operations(turn)
        with writing(folder):
            facts["sha256"] = {"start": _start(turn), **artifacts.checksums(folder)}
    return record


def _prune(turn: InTurn, folder: Path, asked: Interruption) -> None:
    """Prune the blocks that are not finished, and complete the model's folder.

    Raises:
        DivergedError: There is no evidence for the masks.
        InterruptedRun: A signal asked to stop; finished blocks are kept.
    """
    pruner, total = turn.pruner, len(turn.blocks)
    whole, partial = folder / artifacts.FOLDER, folder / artifacts.UNFINISHED
    if whole.is_dir():
        pruner.prune_in_turn([], turn.compute.fair_loss, nullcontext, _kept(folder))
        return
    for part in (partial / "masks", partial):
        part.mkdir(parents=True, exist_ok=True)
        clear_partial(part)
    done = {n for n in range(total) if (partial / turn.file(n)).is_file()}
    if done:
        log.info("continuing after block %d of %d in %s", len(done), total, folder)
    kept = {k: v for n in done for k, v in _kept(partial, turn.file(n)).items()}

    with progress_bar(f"{pruner.name} {pruner.target:g}", total) as advance:

        @contextmanager
        def hold(block: nn.Module) -> Iterator[None]:
            number = turn.blocks.index(block)
            finished = number in done
            source = turn.stored(partial, number) if finished else turn.shards
            with turn.held(block, source):
                yield
                if not finished:
                    turn.write(partial, number, turn.parameters[block])
                    done.add(number)
            advance(len(done), f"block {number + 1}")
            if asked.signal is not None:
                log.warning(
                    "%s: stopping after block %d of %d; the same command continues from there",
                    *(asked.signal.name, number + 1, total),
                )
                asked.obey()

        batches = [] if turn.calibration is None else list(turn.calibration.epoch(0))
        try:
            pruner.prune_in_turn(batches, turn.compute.fair_loss, hold, kept)
        except (FloatingPointError, NoEvidenceError) as error:
            raise DivergedError(str(error)) from error
        for number, block in enumerate(turn.blocks):
            if number not in done:  # nothing in it is pruned
                with hold(block):
                    pass
    turn.write(partial, -1, turn.rest)
    _complete(turn, folder)


def _complete(turn: InTurn, folder: Path) -> None:
    """Write the files besides the blocks, then give the folder its final name."""
    from seven_exp.datasets.tokens import load_tokenizer

    partial, model = folder / artifacts.UNFINISHED, turn.model
    numbers = range(-1, len(turn.blocks))
    with writing(partial), disk_errors():
        masks = [partial / "masks" / turn.file(number) for number in numbers]
        join_tensors([path for path in masks if path.is_file()], folder / artifacts.MASKS)
        of_block = {-1: turn.rest} | dict(enumerate(turn.parameters.values()))
        places = {turn.shards.files[n][1]: turn.file(k) for k in numbers for n in of_block[k]}
        size = sum((partial / file).stat().st_size for file in set(places.values()))
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (partial / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        parts: list[Any] = [model.config, getattr(model, "generation_config", None)]
        for part in parts:
            if part is not None:
                part.save_pretrained(partial)
        load_tokenizer(turn.config.dataset.arguments["tokenizer"]).save_pretrained(partial)
        partial.rename(folder / artifacts.FOLDER)


def _kept(folder: Path, file: str | None = None) -> dict[str, int]:
    """How many weights the stored masks keep: of a run, or of one unfinished block."""
    path = folder / artifacts.MASKS if file is None else folder / "masks" / file
    if not path.is_file():
        return {}
    return {name: int(mask.sum()) for name, mask in artifacts.load_masks(path).items()}


def _evaluate(turn: InTurn, folder: Path, asked: Interruption) -> dict[str, float]:
    """The task's metrics of the model that was written, read again block by block."""
    compute, model, task = turn.compute, turn.model, turn.data.task
    batches = list(turn.data.test.epoch(0))
    found: dict[int, tuple[Tensor, int]] = {}

    def measure(i: int) -> None:
        inputs, targets = compute.place(batches[i])
        loss, _ = compute.loss(model, inputs, targets)
        found[i] = loss, task.weight(targets)

    with progress_bar("evaluating", len(turn.blocks)) as advance:

        @contextmanager
        def hold(block: nn.Module) -> Iterator[None]:
            written = turn.stored(folder / artifacts.FOLDER, turn.blocks.index(block))
            with turn.held(block, written):
                turn.zeros[block] = sum(int((p == 0).sum()) for p in block.parameters())
                yield
            advance(len(turn.zeros), "")
            asked.obey_if_asked()

        runs = [partial(measure, i) for i in range(len(batches))]
        with inference(model, [compute.device]):
            side_by_side(turn.blocks, runs, hold)
    outside = {id(p): p for p in model.parameters() if not p.is_meta}
    turn.zeros[model] = sum(int((p == 0).sum()) for p in outside.values())
    loss, seen = torch.zeros((), device=compute.device), 0
    for i in range(len(batches)):
        loss += found[i][0] * found[i][1]
        seen += found[i][1]
    return task.metrics(torch.empty(0), split_loss(loss.item(), seen))


def _zero_shot(turn: InTurn, folder: Path, asked: Interruption) -> dict[str, Any]:
    """Accuracies of the model that was written, with all of its blocks on the device."""
    written, tokenizer = folder / artifacts.FOLDER, turn.config.dataset.arguments["tokenizer"]
    with ExitStack() as stack, faults_of_the_user():
        for number, block in enumerate(turn.blocks):
            stack.enter_context(turn.held(block, turn.stored(written, number)))
        return turn.harness.evaluate(*(turn.model, tokenizer, turn.compute), asked.obey_if_asked)


def _shown(turn: InTurn, outcome: Outcome) -> dict[str, float]:
    """The values to log: metrics and each layer's sparsity."""
    counts = turn.pruner.layer_counts
    return {
        **{f"test/{name}": value for name, value in outcome.metrics.items()},
        **{f"layer_sparsity/{name}": 1 - kept / size for name, (size, kept) in counts.items()},
    }


def _start(turn: InTurn) -> str:
    """SHA-256 of the dense model, as for a model in memory."""
    like = turn.model.state_dict()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in sorted(like):
            own = turn.shards.tied.get(name, name)
            yield from ((name, value) for _, value in turn.shards.read([own], like))

    return digest_of(tensors())


def _operations(turn: InTurn) -> dict[str, int | None]:
    """Operations of a forward pass, counted without values; None if they depend on values."""
    inputs = first_inputs(turn.data.test)
    assert not isinstance(inputs, Tensor)
    sample = {name: values[:1].to("meta") for name, values in inputs.items()}
    try:
        bare = bare_model(turn.model.config, next(turn.model.parameters()).dtype)
        layers = prunable(turn.config, bare)
        dense, sparse = forward_flops(bare, sample, layers, turn.pruner.layer_counts)
    except (NotImplementedError, RuntimeError):
        return {"flops_dense": None, "flops_sparse": None}
    return {"flops_dense": dense, "flops_sparse": sparse}
