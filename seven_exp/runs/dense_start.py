"""The dense start of a run: trained once, by the first run that needs it, and shared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.config import RunConfig, moment
from seven_exp.console import progress_bar
from seven_exp.datasets import Data
from seven_exp.runs.build import data_of, model_of, optimizer_of
from seven_exp.runs.identity import (
    START,
    corrections_of_dense,
    data_identity,
    digest,
    model_identity,
    plugins_identity,
)
from seven_exp.runs.plan import steps_of
from seven_exp.training.compute import Compute
from seven_exp.training.loop import Recipe, Reported, train
from seven_exp.training.lr_schedules import lr_factor
from seven_exp.training.pretrain import cached_start
from seven_exp.training.world import World


def load_dense_start(config: RunConfig, data: Data, model: nn.Module, compute: Compute) -> None:
    """Load the dense start that the config specifies; train it first if it is not cached.

    Raises:
        DivergedError: Its loss is not finite.
        OSError: It is not cached, and the cache can't be written.
    """
    if config.model.pretrain.epochs == 0:
        return
    identity = start_identity(config)

    def build() -> dict[str, Tensor]:
        return _trained(config, data, compute)

    folder = Path(config.cache_dir).expanduser() / "pretrained"
    model.load_state_dict(cached_start(folder, digest(identity), build, identity))


def start_identity(config: RunConfig) -> dict[str, Any]:
    """Everything that determines the result of dense training."""
    identity = {
        "version": 2,
        "model": {k: v for k, v in model_identity(config).items() if k != "freeze"},
        # Metrics are not measured there.
        "dataset": {k: v for k, v in data_identity(config).items() if k != "metrics"},
        "optimizer": config.optimizer.model_dump(exclude={"lr"}, exclude_defaults=True),
        "trainer": config.trainer.model_dump(
            include={"batch_size", "accumulate", "grad_clip", "precision", "label_smoothing"},
            exclude_defaults=True,
        ),
    }
    if plugins := plugins_identity(config, *START):
        identity["plugins"] = plugins
    if corrections := corrections_of_dense(config):
        identity["corrections"] = corrections
    return identity


def _trained(config: RunConfig, data: Data, compute: Compute) -> dict[str, Tensor]:
    pretrain, trainer = config.model.pretrain, config.trainer
    torch.manual_seed(pretrain.seed)
    start = model_of(config, data).to(compute.device)
    batches = data_of(config.dataset, trainer.batch_size, pretrain.seed).train
    steps = steps_of(pretrain.epochs, len(batches), trainer.accumulate)
    chosen = config.optimizer
    warmup = moment(chosen.warmup_steps, steps)
    recipe = Recipe(
        steps,
        lambda t: lr_factor(chosen.lr_schedule, t, steps, warmup, chosen.lr_options),
        trainer.accumulate,
        trainer.grad_clip,
        compute.smoothed(trainer.label_smoothing).loss,
        compute.scaler(),
    )
    optimizer = optimizer_of(config.optimizer, start, pretrain.lr)
    with progress_bar("pretraining", steps) as advance:
        # A single process trains it, even if others wait for it.
        for event in train(start, batches, optimizer, replace(compute, world=World()), recipe):
            if isinstance(event, Reported):
                advance(event.step, f"loss {event.loss:.3f}")
    return start.state_dict()
