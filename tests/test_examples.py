"""The examples run and do what they say."""

import json
import re
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from preloaded import python
from test_conf import composed
from torch import nn

import seven_exp
from seven_exp.config import ConfigError
from seven_exp.runs import run_hash
from seven_exp.runs.check import check
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import TRACKERS, LocalRecord, Trackers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def test_a_loop_of_ones_own():
    done = subprocess.run(
        [python(), ROOT / "examples" / "own_loop.py"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = re.findall(r"(\w+): ([\d.]+)% accuracy at ([\d.]+)% sparsity", done.stdout)
    assert [name for name, _, _ in lines] == ["seven_pre", "seven_dyn"]
    for _, accuracy, sparsity in lines:
        assert float(accuracy) > 70
        assert sparsity == "90.0"


@pytest.fixture
def own():
    """A layer, its weight and batches, once an example's file has registered its name."""

    def load(file):
        runpy.run_path(str(ROOT / "examples" / "own_criterion" / file))
        torch.manual_seed(0)
        model = nn.Linear(6, 4, bias=False).double()
        batches = [torch.randn(5, 6).double() for _ in range(3)]
        return model, model.weight.detach().clone(), batches

    return load


def loss_fn(model, batch):
    return model(batch).square().mean()


def test_a_score_of_ones_own(own):
    model, weight, batches = own("spread.py")
    pruner = seven_exp.create_pruner(
        "spread_pre", model, sparsity=0.5, rounds=3, schedule="one_shot", decay=0.5, exclude=[]
    )
    pruner.prune(batches, loss_fn)
    x = batches[0]
    gradient = 2 / (5 * 4) * (x @ weight.T).T @ x
    score = weight.abs() * (0.5 * gradient**2).sqrt()
    assert torch.equal(pruner.masks["weight"].flatten(), score.flatten() > score.median())


def test_a_solver_of_ones_own(own):
    model, weight, batches = own("mean_input.py")
    pruner = seven_exp.create_pruner("mean_input", model, sparsity=0.5, exclude=[])
    pruner.prune(batches, loss_fn)
    score = weight.abs() * torch.cat(batches).abs().mean(0)
    best = score.argsort(1, descending=True)[:, :3]
    assert torch.equal(pruner.masks["weight"], torch.zeros(4, 6).scatter_(1, best, 1).bool())


def test_a_rule_of_ones_own(own):
    """In a thousand samples of half of the weights, larger ones are kept more often."""
    model, weight, _ = own("sampled.py")
    kept = torch.zeros(4, 6)
    for seed in range(1000):
        model.weight.data.copy_(weight)
        pruner = seven_exp.create_pruner("sampled", model, sparsity=0.5, seed=seed, exclude=[])
        pruner.prune()
        assert pruner.sparsity == 0.5
        kept += pruner.masks["weight"]
    order = weight.abs().flatten().argsort()
    often = kept.flatten()[order] / 1000
    assert often[:8].max() < often[-8:].min()
    cold = seven_exp.create_pruner("sampled", model, sparsity=0.5, temperature=1e-9, exclude=[])
    model.weight.data.copy_(weight)
    cold.prune()
    assert torch.equal(
        cold.masks["weight"].flatten(), weight.abs().flatten() > weight.abs().median()
    )


PARTS = ROOT / "examples" / "own_parts"


def test_one_run_uses_a_plugin_of_each_kind(tmp_path):
    plugins = [str(PARTS / f"{x}.py") for x in (
        "model", "dataset", "optimizer", "lr_schedule", "tracker", "metric")]  # fmt: skip

    def config(*overrides):
        return composed(
            f"hydra.searchpath=[file://{PARTS / 'conf'}]", f"plugins=[{','.join(plugins)}]",
            "model=own_net", "dataset=own_stripes", "optimizer=own_lion",
            "optimizer.lr_schedule=own_inverse_sqrt", "dataset.metrics=[own_worst_class]",
            "pruner=seven_dyn", "trainer.max_steps=60", "trainer.eval_interval=60",
            "trainer.log_interval=20", "tracker.also=[own_csv]", "tracker.mode=disabled",
            "threads=1", *overrides,
        )  # fmt: skip

    chosen = config()
    check(chosen)
    record = run_experiment(
        chosen, tmp_path, Trackers([LocalRecord(), TRACKERS["own_csv"](chosen.tracker)])
    )
    assert record["metrics"]["accuracy"] > 0.9
    # The worst of two classes of equal size is at most as good as both, and at least 2 a - 1.
    accuracy, worst = (record["metrics"][x] for x in ("accuracy", "own_worst_class"))
    assert 2 * accuracy - 1 - 1e-6 <= worst <= accuracy
    assert record["validation"].keys() == record["metrics"].keys()
    assert (tmp_path / "losses.csv").read_text().count("\n") == 4
    rates = [json.loads(x)["lr"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-3 * (1 + t / 100) ** -0.5 for t in (19, 39, 59)])
    assert run_hash(config("optimizer.lr_options={timescale:50}")) != record["run_hash"]
    with pytest.raises(ConfigError, match="unknown metric 'worst': did you mean 'own_worst_class'"):
        check(config("dataset.metrics=[worst]"))


def test_the_optimizer_of_the_example_is_that_of_its_formula():
    Lion = runpy.run_path(str(PARTS / "optimizer.py"))["Lion"]  # noqa: N806
    weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    optimizer = Lion([{"params": [weight], "weight_decay": 0.1}], 0.01, (0.9, 0.99))
    w, m = weight.detach().numpy().copy(), np.zeros(3)
    generator = np.random.default_rng(0)
    for _ in range(5):
        g = generator.normal(size=3)
        weight.grad = torch.tensor(g)
        optimizer.step()
        w = w - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * w)
        m = 0.99 * m + 0.01 * g
        np.testing.assert_allclose(weight.detach(), w, rtol=1e-12)
