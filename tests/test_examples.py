"""The examples run and do what they say."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
from preloaded import python
from torch import nn

import seven_exp
from seven_exp.pruning import PRUNERS

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
def own(monkeypatch):
    """A layer, its weight, batches and a loss, once an example's file has registered its name."""

    names = {"spread_pre", "spread_dyn", "mean_input", "sampled"}
    others = {name: spec for name, spec in PRUNERS._entries.items() if name not in names}
    monkeypatch.setattr(PRUNERS, "_entries", others)

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
