"""Processes that share weights, optimizer and pruner state train and prune as one process does."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from ranks import start
from safetensors.torch import load_file
from test_conf import composed

from seven_exp import runs
from seven_exp.config import ConfigError
from seven_exp.runs.check import check
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord
from seven_exp.training.interruption import InterruptedRun

SMALL = (
    *("trainer.max_steps=6", "trainer.batch_size=50", "trainer.eval_interval=2", "sparsity=0.8"),
    *("trainer.accumulate=2", "trainer.grad_clip=1.0", "tracker.mode=disabled", "threads=1"),
    *("device=cpu", "trainer.sharding=fsdp", "run.checkpoint_interval=2"),
)
MODELS = {
    # Neither two nor four processes share its rows evenly.
    "mlp": ("model=mlp", "model.widths=[25,18]"),
    # The gradient of a key's bias is zero but for rounding, which Adam would magnify.
    "vit": (
        *("optimizer=sgd", "model.depth=2", "model.width=16", "model.mlp_width=24"),
        "model.heads=2",
    ),
}
PRUNERS = {
    "seven_dyn": ("pruner=seven_dyn",),
    "seven_dyn of layers": ("pruner=seven_dyn", "pruner.scope=per_layer"),
    "seven_pre": ("pruner=seven_pre", "pruner.rounds=4"),
    "magnitude_dyn": ("pruner=magnitude_dyn", "pruner.scope=per_layer"),
}
NAMES = (
    *("mlp, seven_dyn", "mlp, seven_pre", "mlp, magnitude_dyn"),
    *("vit, seven_dyn", "vit, seven_dyn of layers", "vit, seven_pre"),
)
SHARED = {2: NAMES, 4: ("mlp, seven_pre",), 1: NAMES}
"""Number of processes -> what they train."""

STOPS = {2: 2, 4: 4, 1: None}
"""Number of processes -> the step after which the run is stopped, to be continued by the next."""


def config_of(name):
    model, pruner = name.split(", ")
    return composed(*SMALL, *MODELS[model], *PRUNERS[pruner])


class Stopping(LocalRecord):
    """Asks for a stop at the report of a step."""

    def __init__(self, step):
        self.step = step

    def log(self, step, values):
        super().log(step, values)
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)


def train(ranks, root):
    """This process's part of all runs; the relay's is stopped, or continued to its end."""
    for name in SHARED[ranks]:
        (root / f"{ranks} {name}").mkdir(exist_ok=True)
        run_experiment(config_of(name), root / f"{ranks} {name}", LocalRecord())
    (root / "relay").mkdir(exist_ok=True)
    try:
        run_experiment(config_of("vit, seven_dyn"), root / "relay", Stopping(STOPS[ranks]))
    except InterruptedRun:
        assert STOPS[ranks] is not None


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharding")
    for ranks in (2, 4):
        start(ranks, __file__, ranks, folder)
    train(1, folder)
    return folder


def left(folder):
    record = json.loads((folder / "results.json").read_text())
    masks = runs.load_masks(folder / "masks.safetensors")
    return record, masks, load_file(folder / "checkpoints/final.safetensors")


def agree(one, other):
    (record, masks, weights), (expected, whole, dense) = left(one), left(other)
    assert record["status"] == "finished"
    assert masks.keys() == whole.keys()
    assert all(torch.equal(masks[name], whole[name]) for name in whole)
    for key in ("layers", "params_nonzero", "params_zero", "zeros_total", "sparsity", "run_hash"):
        assert record[key] == expected[key]
    for key in ("params_total", "flops_dense", "flops_sparse"):
        assert record[key] == expected[key]
    # Sums of gradients are rounded in another order.
    assert weights.keys() == dense.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, dense[name], rtol=1e-3, atol=1e-4)
    assert record["metrics"]["loss"] == pytest.approx(expected["metrics"]["loss"], rel=1e-4)
    # One image of 360.
    assert record["metrics"]["accuracy"] == pytest.approx(expected["metrics"]["accuracy"], abs=3e-3)


pytestmark = [
    pytest.mark.xdist_group("sharding"),
    pytest.mark.skipif(sys.platform == "win32", reason="gloo on POSIX"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "name"), [(n, name) for n in (2, 4) for name in SHARED[n]])
def test_masks_weights_and_figures_are_those_of_one_process(root, ranks, name):
    agree(root / f"{ranks} {name}", root / f"1 {name}")


@pytest.mark.slow
def test_two_processes_begin_four_continue_and_one_ends(root):
    agree(root / "relay", root / "1 vit, seven_dyn")
    steps = [json.loads(line)["step"] for line in (root / "relay/metrics.jsonl").open()]
    assert steps == sorted(set(steps))


def test_sharding_is_no_part_of_a_runs_identity():
    config = composed(*SMALL, *MODELS["mlp"], *PRUNERS["seven_dyn"])
    other = composed(*SMALL, *MODELS["mlp"], *PRUNERS["seven_dyn"], "trainer.sharding=none")
    assert runs.run_hash(config) == runs.run_hash(other)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("pruner=rigl",), "rigl compares the weights of a layer"),
        (("pruner=movement",), "movement remembers pruned weights"),
        (("pruner=wanda",), "wanda needs whole weights"),
        (("pruner=lamp",), "lamp compares the weights of a layer"),
        (("pruner=random",), "random needs whole weights"),
        (("pruner.scope=per_row",), "choose global, per_layer or erk"),
        (("pruner=magnitude_pre", "pruner.pattern=2:4", "sparsity=0.5"), "choose unstructured"),
        (("trainer.ema=0.99",), "trainer.ema is 0.99: it does not work with trainer.sharding=fsdp"),
        (("optimizer=muon",), "choose adamw"),
        (("trainer.precision=fp16",), "choose bf16"),
        (("analysis.every=3",), "choose null"),
    ],
)
def test_what_needs_whole_weights_is_refused_before_anything_is_loaded(overrides, told):
    with pytest.raises(ConfigError, match="sharding") as error:
        check(composed(*SMALL, *MODELS["mlp"], *overrides))
    (line,) = error.value.args
    assert told in line
    assert "\n" not in line
    check(composed(*SMALL, *MODELS["mlp"], *overrides, "trainer.sharding=none"))


if __name__ == "__main__":
    train(int(sys.argv[1]), Path(sys.argv[2]))
