"""Compares the time of a whole run on CIFAR-shaped images with Synaptic-Flow's.

Both read the same random images from files in CIFAR-10's format, and alternate in separate
processes, because ours changes threads and malloc. Each side runs its whole
experiment: ours a composed config through `run_experiment`, including records and checkpoints;
theirs the unmodified `Experiments/singleshot.py`, which also saves its results. Both use SNIP to
90% on ten batches, then SGD with Nesterov momentum, batches of 128, crops and mirroring, and an
evaluation after each epoch. It needs a checkout of ganguli-lab/Synaptic-Flow; none of its code is
here:

    python benchmarks/whole_run.py --synaptic-flow DIR
    python benchmarks/whole_run.py --synaptic-flow DIR --train 12800 --test 2560 --repeats 3

`resnet20` is the same network on both sides, `mlp` has five hidden layers of 100, where data
are most of the work; ours has GELU and theirs ReLU. Ours drops an epoch's last, smaller batch;
theirs evaluates twice before training, which the second line subtracts. Times inside the runs are
medians; an epoch's data are timed separately, and "the rest" is training without them.
"""

import argparse
import contextlib
import importlib
import io
import multiprocessing
import pickle
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torchvision.datasets import CIFAR10

from seven_exp.cli.train import checked
from seven_exp.config import RunConfig
from seven_exp.runs.build import data_of
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import build_tracker
from seven_exp.training import evaluation

CONF = Path(__file__).resolve().parent.parent / "conf"
BATCH = 128
MODELS = {
    "resnet20": (["model=resnet20"], ("resnet20", "lottery")),
    "mlp": (["model=mlp", "model.widths=[100,100,100,100,100]"], ("fc", "default")),
}
"""Name -> (our overrides, their model and its class)."""

Seconds = dict[str, float]
"""Part of a run -> its duration."""


def main() -> None:
    """Print seconds and ratios for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--synaptic-flow", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--train", type=int, default=50_000, help="images, a multiple of five")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="pairs of runs")
    parser.add_argument("--threads", type=int, help="for both (default: each chooses)")
    parser.add_argument("--set", nargs="*", default=[], help="more overrides of our config")
    options = parser.parse_args()
    sys.path.insert(0, str(options.synaptic_flow.resolve()))
    threads = options.threads or torch.get_num_threads()
    console = Console(width=100, highlight=False)
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        write_cifar(Path("Data"), options.train, options.test)
        for name in options.models:
            overrides, peer = MODELS[name]
            chosen = [f"threads={options.threads or 'null'}", f"trainer.epochs={options.epochs}"]
            pairs = []
            for i in range(options.repeats):
                turns = [
                    partial(ours, [*overrides, *chosen, *options.set], Path(f"{name}{i}")),
                    partial(theirs, *peer, options.epochs),
                ]
                order = -1 if i % 2 else 1
                pair = [alone(turn, threads) for turn in turns[::order]]
                pairs.append(tuple(pair[::order]))
            console.print(tabled(name, pairs))
    console.print(
        f"{options.train:,} images and {options.test:,} to evaluate on, {options.epochs} epochs; "
        f"torch {torch.__version__}, {threads} threads at most, {platform.machine()}, "
        f"{'cuda' if torch.cuda.is_available() else 'cpu'}"
    )


def alone(turn: Callable[[], Seconds], threads: int) -> Seconds:
    """Run one side in a separate process; return its times."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(prepared, turn, threads).result()


def prepared(turn: Callable[[], Seconds], threads: int) -> Seconds:
    """Run one side on our images, which torchvision reads although their checksums differ."""
    torch.set_num_threads(threads)
    with mock.patch("torchvision.datasets.cifar.check_integrity", return_value=True):
        return turn()


def tabled(title: str, pairs: list[tuple[Seconds, ...]]) -> Table:
    """Medians of all pairs of runs."""
    table = Table("seconds", "ours", "theirs", "ratio", "its range", title=title)
    for part in pairs[0][0]:
        ratios = [their[part] / our[part] for our, their in pairs]
        sides = (
            statistics.median(side[part] for side in column) for column in zip(*pairs, strict=True)
        )
        table.add_row(
            *(part, *(f"{seconds:.2f}" for seconds in sides)),
            *(f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"),
        )
    return table


def write_cifar(root: Path, train: int, test: int) -> None:
    """Random images in CIFAR-10's files: five for training, one for tests, one with the names."""
    draw = np.random.default_rng(0)
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    sizes = {name: train // 5 for name, _ in CIFAR10.train_list}
    sizes |= {name: test for name, _ in CIFAR10.test_list}
    for name, size in sizes.items():
        rows = {
            "data": draw.integers(256, size=(size, 3072), dtype=np.uint8),
            "labels": draw.integers(10, size=size).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(rows))
    names = {CIFAR10.meta["key"]: [str(i) for i in range(10)]}
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(names))


def composed(*overrides: str) -> RunConfig:
    """Our side's config."""
    values = [
        *("dataset=cifar10", "dataset.data_dir=Data", "dataset.download=false"),
        *("pruner=snip", "sparsity=0.9", "optimizer=sgd", "optimizer.lr_schedule=constant"),
        *(f"trainer.batch_size={BATCH}", "tracker.mode=disabled"),
    ]
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        return checked(compose("config", [*values, *overrides]))


def ours(overrides: list[str], folder: Path) -> Seconds:
    """A run of this package."""
    folder.mkdir()
    config = composed(*overrides)
    with timed(evaluation, "evaluate") as times:
        start = time.perf_counter()
        record = run_experiment(config, folder, build_tracker(config.tracker))
        whole = time.perf_counter() - start
    evaluating = times["evaluate"]
    start = time.perf_counter()
    for _ in data_of(config.dataset, config.trainer.batch_size, 0).train.epoch(0):
        pass
    return parts(
        whole,
        extra=0.0,
        training=(record["seconds"] - record["seconds_pruning"] - sum(evaluating))
        / config.trainer.epochs,
        evaluation=statistics.median(evaluating),
        data=time.perf_counter() - start,
    )


def theirs(model: str, kind: str, epochs: int) -> Seconds:
    """A run of Synaptic-Flow."""
    singleshot = importlib.import_module("Experiments.singleshot")
    load, training = (importlib.import_module(name) for name in ("Utils.load", "train"))
    settings = SimpleNamespace(
        **{"seed": 1, "gpu": 0, "workers": 4, "verbose": False, "dataset": "cifar10"},
        **{"model": model, "model_class": kind, "dense_classifier": True, "pretrained": False},
        **{"optimizer": "momentum", "lr": 0.1, "weight_decay": 5e-4},
        **{"lr_drops": [], "lr_drop_rate": 0.1, "pre_epochs": 0, "post_epochs": epochs},
        **{f"{split}_batch_size": BATCH for split in ("train", "test", "prune")},
        # Its number of images is per class, of ten: ten batches, as in ours.
        **{"pruner": "snip", "prune_dataset_ratio": BATCH, "prune_epochs": 1, "compression": 1},
        **{"compression_schedule": "exponential", "mask_scope": "global"},
        **{f"prune_{kind}": False for kind in ("bias", "batchnorm", "residual", "train_mode")},
        **{"reinitialize": False, "shuffle": False, "invert": False},
        **{"save": True, "result_dir": "."},
    )
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        with timed(training, "train", "eval") as times:
            start = time.perf_counter()
            singleshot.run(settings)
            whole = time.perf_counter() - start
        loader = load.dataloader("cifar10", BATCH, True, settings.workers)
        start = time.perf_counter()
        for _ in loader:
            pass
    return parts(
        whole,
        extra=sum(times["eval"][:2]),
        training=statistics.median(times["train"]),
        evaluation=statistics.median(times["eval"]),
        data=time.perf_counter() - start,
    )


def parts(
    whole: float, *, extra: float, training: float, evaluation: float, data: float
) -> Seconds:
    """The rows of the table."""
    return {
        "whole run": whole,
        "whole run, evaluated once an epoch": whole - extra,
        "an epoch of training": training,
        "of it, data alone": data,
        "of it, the rest": training - data,
        "an evaluation": evaluation,
    }


@contextlib.contextmanager
def timed(module: Any, *names: str) -> Iterator[Mapping[str, list[float]]]:
    """Seconds of each call of a module's functions."""
    times: dict[str, list[float]] = {name: [] for name in names}

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                times[name].append(time.perf_counter() - start)

        return call

    with contextlib.ExitStack() as patches:
        for name in names:
            clock = clocked(name, getattr(module, name))
            patches.enter_context(mock.patch.object(module, name, clock))
        yield times


if __name__ == "__main__":
    main()
