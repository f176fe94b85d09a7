"""Averaged weights, scaled half precision and weight decay, by their definitions and resumed."""

import copy
import json
import signal
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_conf import composed
from test_resume import Signalled, left_by
from torch import nn

from seven_exp import runs
from seven_exp.config import ConfigError
from seven_exp.models import build_model
from seven_exp.pruning import create_pruner
from seven_exp.runs.check import check
from seven_exp.runs.parts import build
from seven_exp.runs.restore import restore
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord
from seven_exp.training.averaging import Average
from seven_exp.training.compute import Compute, warn_if_slow
from seven_exp.training.interruption import InterruptedRun
from seven_exp.training.loop import DivergedError, Recipe, Stepped, train
from seven_exp.training.optimizers import build_optimizer
from seven_exp.training.sharpness import raised
from seven_exp.training.world import World

CPU = torch.device("cpu")
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
SMALL = [
    "model=mlp", "model.widths=[8]", "trainer.max_steps=14", "trainer.batch_size=16",
    "trainer.eval_interval=7", "trainer.log_interval=1", "tracker.mode=disabled", "sparsity=0.5",
    "threads=1",
]  # fmt: skip


def test_the_average_is_that_of_its_formula_and_pruned_weights_are_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    average = Average(model, 0.7)
    pruner = create_pruner("magnitude", model, sparsity=0.5, include=["0"], exclude=[])
    expected = {k: v.double().numpy().copy() for k, v in model.state_dict().items()}
    for step in range(1, 7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 6))  # the norm's statistics change
        if step == 3:
            pruner.prune()
        pruner.apply()
        average.update(model, step, pruner)
        d = min(0.7, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * value.double().numpy()
        if step >= 3:
            expected["0.weight"] *= pruner.masks["0.weight"].numpy()
    found = average.model.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            assert found[name] == 6
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    assert (found["0.weight"] == 0).sum() == 15
    assert pruner.check(average.model).ok
    average.restart(model)
    assert torch.equal(average.model[2].weight, model[2].weight)


@pytest.mark.parametrize("name", ["seven_dyn", "rigl", "movement", "imp", "snip"])
def test_a_run_measures_and_saves_the_average(tmp_path, name):
    levels = ["pruner.levels=2", "pruner.finetune_steps=8"] if name == "imp" else []
    config = composed(*SMALL, f"pruner={name}", "trainer.ema=0.9", *levels)
    check(config)
    record = run_experiment(config, tmp_path / "run", LocalRecord())
    saved = load_file(tmp_path / "run/checkpoints/final.safetensors")
    for key, mask in runs.load_masks(tmp_path / "run/masks.safetensors").items():
        assert (saved[key][~mask] == 0).all()
    plain = run_experiment(
        config.model_copy(update={"trainer": config.trainer.model_copy(update={"ema": None})}),
        tmp_path / "plain", LocalRecord(),
    )  # fmt: skip
    assert record["metrics"]["loss"] != plain["metrics"]["loss"]
    # Measured on what is saved: restored, the model has the recorded loss.
    restored = restore(tmp_path / "run")
    total = sum(
        nn.functional.cross_entropy(restored.model(x), y, reduction="sum").item()
        for x, y in restored.data.test.epoch(0)
    )
    assert record["metrics"]["loss"] == pytest.approx(total / 360, rel=1e-5)
    # The training itself is the same.
    masks = [runs.load_masks(tmp_path / f / "masks.safetensors") for f in ("run", "plain")]
    assert all(torch.equal(masks[0][k], masks[1][k]) for k in masks[0])


@pytest.mark.parametrize(
    "recipe",
    [
        ["trainer.ema=0.9", "pruner=seven_dyn"],
        ["trainer.ema=0.9", "trainer.precision=fp16", "pruner=rigl"],
        ["trainer.sam_rho=0.1", "pruner=movement"],
        pytest.param(["optimizer=muon", "pruner=rigl"], marks=needs_muon),
        ["trainer.ema=0.99", "pruner=imp", "pruner.levels=2", "pruner.finetune_steps=8"],
        ["dataset.transforms={trivial_augment:{},mixup:{},cutmix:{}}", "pruner=snip",
         "optimizer.lr_schedule=one_cycle", "trainer.label_smoothing=0.1"],
        ["model=vit_tiny", "model.depth=2", "model.stochastic_depth=0.5", "pruner=seven_dyn",
         "trainer.ema=0.5"],
    ],
    ids=lambda recipe: recipe[0],
)  # fmt: skip
def test_stopped_and_continued_a_run_is_bit_identical(tmp_path, recipe):
    vit = "model=vit_tiny" in recipe
    base = [x for x in SMALL if not (vit and x.startswith("model"))]
    config = composed(*base, *recipe, "run.checkpoint_interval=0")
    run_experiment(config, tmp_path / "whole", LocalRecord())
    with pytest.raises(InterruptedRun):
        run_experiment(config, tmp_path / "run", Signalled(signal.SIGTERM, 8))
    assert list((tmp_path / "run/checkpoints").glob("step-00000008*"))
    run_experiment(config, tmp_path / "run", LocalRecord())
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_a_model_that_breaks_in_its_last_step_has_no_accuracy(tmp_path):
    """Its training losses were finite, and broken outputs would count as the first class."""
    config = composed(
        *SMALL, "pruner=magnitude", "trainer.max_steps=1", "optimizer.lr=1e30",
        "optimizer.lr_schedule=constant", "optimizer.warmup_steps=0", "dataset.validation=0",
    )  # fmt: skip
    with pytest.raises(DivergedError, match="NaN"):
        run_experiment(config, tmp_path / "run", LocalRecord())
    record = json.loads((tmp_path / "run/results.json").read_text())
    assert (record["status"], record["metrics"]) == ("failed", {})


class Images:
    """Four batches of two classes that a line tells apart."""

    def __len__(self):
        return 4

    def epoch(self, index, start=0):
        generator = torch.Generator().manual_seed(index)
        for _ in range(start, 4):
            x = torch.randn(16, 6, generator=generator)
            yield x, (x[:, 0] > 0).long()


@pytest.mark.parametrize(
    ("capability", "precision", "device", "slow"),
    [
        ("AVX2", "bf16", "cpu", True),
        ("AVX2", "fp16", "cpu", True),
        ("AVX2", "fp32", "cpu", False),
        ("AVX512", "bf16", "cpu", False),
        ("AVX2", "bf16", "cuda", False),
    ],
)
def test_half_precision_in_software_is_said(monkeypatch, capability, precision, device, slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_if_slow(torch.device(device), precision)
    assert ["trainer.precision=fp32" in str(x.message) for x in said] == [True] * slow


def test_gradients_are_unscaled_before_anyone_reads_them():
    """In fp16 they are those of fp32 up to rounding, also clipped; broken steps are skipped."""
    found = {}
    for precision in ("fp32", "fp16"):
        torch.manual_seed(0)
        model = nn.Linear(6, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        compute = Compute(CPU, precision)
        scaler = compute.scaler()
        assert (scaler is None) is (precision == "fp32")
        recipe = Recipe(4, lambda t: 1.0, grad_clip=0.1, scaler=scaler)
        grads = []
        for event in train(model, Images(), optimizer, compute, recipe):
            if isinstance(event, Stepped):
                grads.append(model.weight.grad.clone())
        found[precision] = grads
    assert all(g.norm() <= 0.1 + 1e-4 for g in found["fp16"])
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)


def test_a_step_that_overflows_is_skipped_and_the_scale_falls():
    model = nn.Linear(6, 2)
    start = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    recipe = Recipe(2, lambda t: 1.0, scaler=scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    events = train(model, Images(), optimizer, Compute(CPU, "fp16"), recipe)
    next(events)
    assert torch.equal(model.weight, start)
    for _ in events:
        pass
    assert scaler.get_scale() < 2.0**40


def test_sam_steps_with_the_gradient_of_the_raised_weights():
    """On L(w) = w' A w / 2 it is A (w + rho A w / |A w|); pruned weights are zero there, too."""
    a = np.diag([1.0, 2.0, 3.0, 4.0]) + 0.5
    w = np.array([[0.5, -1.0, 0.0, 2.0]])
    kept, rho, rate = np.array([[1, 1, 0, 1]]), 0.1, 0.01
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data = torch.tensor(w)
    mask, matrix = torch.tensor(kept).bool(), torch.tensor(a)

    def objective(model, inputs, targets):
        loss = (model.weight @ matrix @ model.weight.T).sum() / 2
        return loss, torch.zeros(len(targets), 2)

    def apply_masks():
        model.weight.data[~mask] = 0.0

    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    recipe = Recipe(
        3, lambda t: 1.0, objective=objective, raised=partial(raised, model, rho, apply_masks)
    )
    for event in train(model, Images(), optimizer, Compute(CPU), recipe):
        if isinstance(event, Stepped):
            g = w @ a
            there = (w + rho * g / np.linalg.norm(g)) * kept
            np.testing.assert_allclose(model.weight.grad, there @ a, rtol=1e-9)
            w = w - rate * there @ a
            np.testing.assert_allclose(model.weight.detach(), w, rtol=1e-9)


@pytest.mark.parametrize("name", ["seven_dyn", "straight_through", "rigl"])
def test_a_run_with_sam_keeps_its_zeros(tmp_path, name):
    plain = composed(*SMALL, f"pruner={name}")
    config = composed(*SMALL, f"pruner={name}", "trainer.sam_rho=0.2")
    check(config)
    one = run_experiment(plain, tmp_path / "plain", LocalRecord())
    other = run_experiment(config, tmp_path / "sam", LocalRecord())
    assert other["sparsity"] == one["sparsity"]
    assert other["metrics"]["loss"] != one["metrics"]["loss"]
    with pytest.raises(ConfigError, match=r"trainer\.sam_rho is 0\.2"):
        check(composed(*SMALL, "trainer.sam_rho=0.2", "trainer.precision=fp16"))


@needs_muon
def test_muon_trains_hidden_matrices_and_adamw_the_rest():
    """As torch's own two optimizers, one after the other, on the same gradients; also reloaded."""
    make = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "betas": (0.8, 0.9)}
    torch.manual_seed(0)
    model = build_model("mlp", num_classes=3, image_size=4, channels=1, widths=[6, 5])
    twin = copy.deepcopy(model)
    optimizer = build_optimizer("muon", model, **make)
    hidden = [twin.hidden0.weight, twin.hidden1.weight]
    biases = [p for p in twin.parameters() if p.ndim == 1]
    rest = [{"params": [twin.head.weight], "weight_decay": 0.1}]
    rest.append({"params": biases, "weight_decay": 0.0})
    theirs = [
        torch.optim.Muon(
            hidden, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.8, 0.9)),
    ]
    for step in range(6):
        if step == 3:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer("muon", model, **make)
            optimizer.load_state_dict(state)
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        for own in theirs:
            own.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_that_torch_lacks_is_refused_in_a_line(monkeypatch):
    monkeypatch.setattr("seven_exp.training.optimizers.AVAILABLE", False)
    with pytest.raises(ConfigError, match=r"torch \S+ has no Muon; install torch 2\.9 or newer"):
        check(composed(*SMALL, "optimizer=muon"))


@pytest.mark.parametrize("every", [False, True])
def test_what_decays(every):
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = build_optimizer(
        "sgd", model, lr=0.1, weight_decay=0.3, momentum=0.0, nesterov=False,
        decay_norms_and_biases=every,
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.3 if every or name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_the_config_builds_them():
    config = composed(*SMALL, "trainer.ema=0.9", "trainer.precision=fp16", "pruner=snip")
    parts = build(config, World(), CPU)
    assert parts.state.average.decay == 0.9
    assert parts.recipe.scaler is parts.state.scaler is not None
    parts = build(composed(*SMALL, "optimizer.decay_norms_and_biases=true"), World(), CPU)
    assert {g["weight_decay"] for g in parts.state.optimizer.param_groups} == {0.01}
    assert parts.state.average is parts.state.scaler is None
