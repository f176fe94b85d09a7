"""What the probe measures, against the same statements in NumPy, by hand or by brute force."""

import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.pytorch_utils
from safetensors.torch import load_file
from test_conf import composed
from torch import nn

from seven_exp.analysis import Probe
from seven_exp.analysis.collapse import collapsed, empty_columns, empty_rows
from seven_exp.analysis.distributions import distribution, separation, separation_in_layers
from seven_exp.analysis.signal_to_noise import Moments
from seven_exp.analysis.survival import births, survival, survivors
from seven_exp.pruning import prunable_layers
from seven_exp.pruning.criteria.seven import Seven
from seven_exp.pruning.matrices import matrices
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import Histogram, LocalRecord


def ratios_after(samples: np.ndarray, alpha_1=0.8, alpha_2=0.9) -> dict[str, np.ndarray]:
    moments = Moments(alpha_1, alpha_2)
    for sample in samples:
        moments.update([torch.tensor(sample)])
    return {name: found[0].numpy() for name, found in moments.ratios().items()}


def weighted(samples: np.ndarray, alpha: float) -> np.ndarray:
    weights = alpha ** np.arange(len(samples))[::-1]
    return np.tensordot(weights / weights.sum(), samples, 1)


@pytest.mark.parametrize("alphas", [(0.8, 0.9), (1, 1), (0.5, 1)])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_ratios_are_those_of_weighted_means(alphas, steps):
    samples = np.random.default_rng(0).standard_t(3, size=(steps, 4, 5))
    found = ratios_after(samples, *alphas)
    rms = np.sqrt(weighted(samples**2, alphas[1]))
    np.testing.assert_allclose(found["snr"], weighted(np.abs(samples), alphas[0]) / rms)
    np.testing.assert_allclose(found["direction"], np.abs(weighted(samples, alphas[1])) / rms)


def test_it_is_the_factor_in_seven_s_own_score():
    generator = torch.Generator().manual_seed(0)
    moments, seven, before = Moments(), Seven(), torch.zeros(6)
    weight = torch.randn(6, generator=generator)
    state = seven.init([weight])
    for _ in range(8):
        grad = 0.01 * torch.randn(6, generator=generator)
        seven.update(state, [weight], [grad.clone()])
        moments.update([grad.clone()])
        score = seven.score(state, [weight])[0].clone()
        factor = (score - before) / (weight * grad / state.numbers["unit"]).abs()
        torch.testing.assert_close(moments.ratios()["snr"][0], factor, rtol=1e-4, atol=0)
        before = score


def test_steady_alternating_and_missing_gradients():
    samples = np.stack([[3.0, (-1.0) ** t, 0.0] for t in range(40)])
    found = ratios_after(samples, 1, 1)
    np.testing.assert_allclose(found["snr"], [1, 1, np.nan])
    np.testing.assert_allclose(found["direction"], [1, 0, np.nan], atol=1e-12)


def test_normal_noise_has_the_ratio_of_the_half_normal_distribution():
    found = ratios_after(np.random.default_rng(0).normal(size=(400, 400)), 1, 1)
    assert found["snr"].mean() == pytest.approx(math.sqrt(2 / math.pi), abs=2e-3)
    # the mean of 400 normal draws is itself half-normal, with a standard deviation of 1 / 20
    assert found["direction"].mean() == pytest.approx(math.sqrt(2 / math.pi) / 20, abs=3e-3)


def test_the_largest_ratio_there_can_be():
    # by Cauchy and Schwarz it is reached by |g_i| in proportion to p_i / q_i, the samples' weights
    # in the two means, and the bound's limit is 0.4 / (1 - 0.64 / 0.9), squared
    age = np.arange(200)[::-1]
    p, q = (alpha**age / (alpha**age).sum() for alpha in (0.8, 0.9))
    found = ratios_after((p / q)[:, None])["snr"]
    assert found == pytest.approx(math.sqrt(0.4 / (1 - 0.64 / 0.9)), rel=1e-9)
    assert 1.17 < found < 1.18


def test_distributions_by_hand():
    values = [torch.tensor([[0.1, 0.3], [math.nan, 0.3]]), torch.tensor([0.9, 7.0])]
    members = [torch.tensor([[True, True], [True, False]]), torch.tensor([True, True])]
    found = distribution(values, members, limit=1.0, bins=4)
    assert found.counts == [[1, 1, 0, 0], [0, 0, 0, 2]]
    assert found.total == [1, 1, 0, 2]
    assert found.means == pytest.approx([0.2, 3.95])
    assert found.mean == pytest.approx(8.3 / 4)
    nobody = distribution(values, [~m & m for m in members], limit=1.0, bins=4)
    assert (nobody.mean, nobody.means) == (None, [None, None])


def test_histograms_are_numpy_s():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    found = distribution([values], [torch.ones(1000, dtype=torch.bool)], limit=1.0, bins=7)
    assert found.total == np.histogram(values.numpy(), bins=7, range=(0, 1))[0].tolist()


def test_separation_counts_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 6, size=9), rng.integers(0, 5, size=7)
        won = [(a > b) + (a == b) / 2 for a, b in itertools.product(one, other)]
        counts = (np.bincount(x, minlength=6).tolist() for x in (one, other))
        assert separation(*counts) == pytest.approx(np.mean(won))
    assert separation([0, 0], [1, 2]) is None


def test_differences_between_layers_are_no_differences_within():
    # the second layer's values are higher throughout, and more of it is kept
    values = [torch.tensor([0.1, 0.1, 0.1, 0.1]), torch.tensor([0.9, 0.9, 0.9, 0.9])]
    kept = [torch.tensor([True, False, False, False]), torch.tensor([True, True, True, False])]
    one, other = (
        distribution(values, members, 1.0, 10) for members in (kept, [~mask for mask in kept])
    )
    # 4 x 4 pairs: 3 x 3 won, 1 x 1 lost, the rest ties
    assert separation(one.total, other.total) == pytest.approx((9 + 6 / 2) / 16)
    assert separation_in_layers(one, other) == 0.5


def test_survival_and_births_by_hand():
    before = [torch.tensor([True, True, False]), torch.tensor([True, True, False])]
    after = [torch.tensor([True, False, False]), torch.tensor([True, False, True])]
    assert survivors(before, after) == [1, 1]
    assert survival(before, after) == 2 / 4
    assert births(before, after) == pytest.approx(1 / 3)
    nothing = [torch.zeros(3, dtype=torch.bool)]
    assert (survival(nothing, nothing), births(nothing, nothing)) == (1.0, 0.0)


def test_collapse_by_hand():
    mask = torch.tensor([[True, False, False, True], [False, False, False, False]])
    assert (empty_rows(mask), empty_columns(mask)) == (1, 2)
    kernel = torch.zeros(3, 2, 1, 2, dtype=torch.bool)
    kernel[1, 0, 0, 1] = True
    assert (empty_rows(kernel), empty_columns(kernel)) == (2, 1)
    assert collapsed([mask, kernel, torch.zeros(2, 2)], threshold=0.1) == [1, 2]
    # 1% is not below 1%
    exact = torch.zeros(10, 10)
    exact[0, 0] = 1
    assert collapsed([exact]) == []


class Experts(nn.Module):
    """Stacked matrices: (experts, inputs, outputs), or (experts, outputs, inputs)."""

    def __init__(self, inputs_first):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn((2, 3, 8) if inputs_first else (2, 8, 3)))
        self.down_proj = nn.Parameter(torch.randn((2, 4, 3) if inputs_first else (2, 3, 4)))


@pytest.mark.parametrize(
    ("module", "weight", "outputs"),
    [
        (nn.Linear(3, 8), "weight", np.s_[:2]),
        (nn.ConvTranspose2d(3, 8, 2), "weight", np.s_[:, :2]),
        (transformers.pytorch_utils.Conv1D(8, 3), "weight", np.s_[:, :2]),
        (Experts(False), "gate_up_proj", np.s_[1, :2]),
        (Experts(True), "gate_up_proj", np.s_[1, :, :2]),
    ],
)
def test_empty_rows_are_outputs_however_a_weight_is_stored(module, weight, outputs):
    model = nn.Module()
    model.experts = module
    probe = Probe([layer for layer in matrices(model) if layer.name == f"experts.{weight}"])
    mask = torch.ones_like(getattr(module, weight), dtype=torch.bool)
    mask[outputs] = False
    getattr(module, weight).grad = torch.ones(mask.shape)
    probe.update()
    probe.measure(1, {f"experts.{weight}": mask})
    report = probe.report()
    (entry,), (layer,) = report["measurements"], report["layers"]
    copies = 2 if mask.dim() == 3 else 1
    assert (entry["empty_rows"], entry["empty_columns"]) == ([2], [0])
    assert layer["shape"][:2] == [copies * 8, 3]


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return self.two(self.one(x))


def chain_and_probe() -> tuple[Chain, Probe]:
    torch.manual_seed(0)
    model = Chain()
    return model, Probe(prunable_layers(model), bins=12)


def feed(model: Chain, probe: Probe, one: np.ndarray, two: np.ndarray) -> None:
    model.one.weight.grad = torch.tensor(one, dtype=torch.float32)
    model.two.weight.grad = torch.tensor(two, dtype=torch.float32)
    probe.update()


def masks_of(one: list, two: list) -> dict[str, torch.Tensor]:
    return {"one.weight": torch.tensor(one) > 0, "two.weight": torch.tensor(two) > 0}


ALL = masks_of([[1, 1, 1], [1, 1, 1]], [[1, 1], [1, 1]])


def test_a_choice_is_judged_by_what_was_known_before_it():
    model, probe = chain_and_probe()
    rng = np.random.default_rng(0)
    ones, twos = rng.normal(size=(20, 2, 3)), rng.normal(size=(20, 2, 2))
    for grads in zip(ones[:10], twos[:10], strict=True):
        feed(model, probe, *grads)
    first = probe.measure(10, ALL)
    assert "analysis/choice_snr_kept" not in first
    assert "analysis/snr_pruned" not in first
    for grads in zip(ones[10:], twos[10:], strict=True):
        feed(model, probe, *grads)
    masks = masks_of([[1, 0, 1], [1, 0, 0]], [[1, 1], [0, 1]])
    second = probe.measure(20, masks)

    kept = np.concatenate([mask.flatten() for mask in masks.values()])
    flat = np.concatenate([ones.reshape(20, -1), twos.reshape(20, -1)], axis=1)
    for steps, name in ((10, "choice_snr"), (20, "snr")):
        size, square = np.abs(flat[:steps]), flat[:steps] ** 2
        snr = weighted(size, 0.8) / np.sqrt(weighted(square, 0.9))
        # in half precision between measurements
        assert second[f"analysis/{name}_kept"] == pytest.approx(snr[kept].mean(), rel=1e-3)
        assert second[f"analysis/{name}_pruned"] == pytest.approx(snr[~kept].mean(), rel=1e-3)
        drawn = second[f"analysis/{name}_pruned_histogram"]
        assert list(drawn.counts) == np.histogram(snr[~kept], bins=12, range=(0, 1.2))[0].tolist()
        np.testing.assert_allclose(drawn.edges, np.linspace(0, 1.2, 13))
    assert second["analysis/survival"] == 6 / 10
    assert second["analysis/empty_rows"] == 0

    # all ten are back: three of one layer and one of the other were once gone
    third = probe.measure(21, ALL)
    assert (third["analysis/survival"], third["analysis/births"]) == (1.0, 0.4)
    assert third["analysis/unbroken"] == 0.6
    assert [entry["survived"] for entry in probe.report()["measurements"]] == [
        *([6, 4], [3, 3], [3, 3]),
    ]


def test_the_start_is_the_mean_over_its_batches():
    model, probe = chain_and_probe()
    rng = np.random.default_rng(0)
    batches = [torch.tensor(rng.normal(size=(4, 3)), dtype=torch.float32) for _ in range(6)]
    before = [weight.detach().clone() for weight in model.parameters()]
    probe.begin(model, batches, lambda model, x: model(x).square().sum())
    assert all(weight.grad is None for weight in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))
    feed(model, probe, np.ones((2, 3)), np.ones((2, 2)))
    masks = masks_of([[1, 0, 1], [1, 0, 0]], [[1, 1], [0, 1]])
    values = probe.measure(1, masks)

    one, two = (weight.detach().double().numpy() for weight in model.parameters())
    grads = []
    for x in (batch.double().numpy() for batch in batches):
        hidden = x @ one.T
        above = 2 * hidden @ two.T
        grads.append(np.concatenate([((above @ two).T @ x).ravel(), (above.T @ hidden).ravel()]))
    stacked = np.stack(grads)
    kept = np.concatenate([mask.flatten() for mask in masks.values()])
    rms = np.sqrt((stacked**2).mean(0))
    expected = {
        "snr": np.abs(stacked).mean(0) / rms, "direction": np.abs(stacked.mean(0)) / rms,
    }  # fmt: skip
    for name, ratio in expected.items():
        assert values[f"analysis/start_{name}_kept"] == pytest.approx(ratio[kept].mean(), rel=2e-3)
        pruned = values[f"analysis/start_{name}_pruned"]
        assert pruned == pytest.approx(ratio[~kept].mean(), rel=2e-3)


def test_weights_without_any_gradient_are_counted_apart():
    model, probe = chain_and_probe()
    grads = np.ones((2, 3))
    grads[:, 1] = [0, math.nan]
    for _ in range(3):
        feed(model, probe, grads, np.ones((2, 2)))
    values = probe.measure(3, ALL)
    assert values["analysis/silent"] == 0.2
    assert values["analysis/snr_kept"] == pytest.approx(1.0)
    assert sum(values["analysis/snr_kept_histogram"].counts) == 8


def test_saved_in_the_middle_it_goes_on_to_the_same_report():
    rng = np.random.default_rng(0)
    grads = [(rng.normal(size=(2, 3)), rng.normal(size=(2, 2))) for _ in range(12)]
    masks = [ALL, masks_of([[1, 0, 1], [1, 0, 0]], [[1, 1], [0, 1]])]
    x = [torch.ones(1, 3), torch.rand(2, 3)]

    def go(model, probe, steps):
        for t in steps:
            feed(model, probe, *grads[t])
            if t % 3 == 2:
                probe.measure(t + 1, masks[t // 6])

    model, whole = chain_and_probe()
    whole.begin(model, x, lambda model, batch: model(batch).sum())
    go(model, whole, range(12))
    for stop in (0, 4, 6):
        model, first = chain_and_probe()
        first.begin(model, x, lambda model, batch: model(batch).sum())
        go(model, first, range(stop))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        another, second = chain_and_probe()
        second.load_state_dict(torch.load(file, weights_only=True))
        go(another, second, range(stop, 12))
        assert second.report() == whole.report()
    with pytest.raises(ValueError, match="other weights"):
        Probe(prunable_layers(nn.Sequential(nn.Linear(2, 2)))).load_state_dict(first.state_dict())


def test_measuring_the_start_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten())
    model.eval()
    model[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe = Probe(prunable_layers(model))
    probe.begin(model, [torch.rand(4, 1, 3, 3)] * 3, lambda model, x: model(x).square().sum())
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert not model.training
    assert not model[0].weight.requires_grad
    assert model[0].weight.grad is None
    # a frozen weight's gradient is measured, too, and dropout was on: it changed
    start = probe.state_dict()["start"]["direction"]["0.weight"]
    assert ((start > 0) & (start < 1)).all()


RUNS = {
    "dropout": ["model.depth=1", "model.dropout=0.2", "pruner=seven_dyn"],
    "revival": ["model=mlp", "model.widths=[24,24]", "pruner=rigl"],
}


@pytest.mark.parametrize("case", RUNS)
def test_looking_on_changes_nothing(tmp_path, case):
    def run(name, *overrides):
        config = composed(
            *RUNS[case], "sparsity=0.8", "trainer.max_steps=10", "tracker.mode=disabled",
            "analysis.start_batches=3", f"cache_dir={tmp_path}", *overrides,
        )  # fmt: skip
        record = run_experiment(config, tmp_path / name, LocalRecord())
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return record, {line["step"]: line for line in map(json.loads, lines)}

    plain, lines = run("plain")
    watched, more = run("watched", "analysis.every=3")
    for file in ("masks.safetensors", "checkpoints/final.safetensors"):
        one, other = (load_file(tmp_path / name / file) for name in ("plain", "watched"))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert plain["run_hash"] == watched["run_hash"]
    assert plain["metrics"] == watched["metrics"]
    assert not (tmp_path / "plain/analysis.json").exists()
    assert not any(key.startswith("analysis/") for line in lines.values() for key in line)

    report = json.loads((tmp_path / "watched/analysis.json").read_text())
    steps = watched["steps"]
    measured = [entry["step"] for entry in report["measurements"]]
    assert measured == sorted({*range(3, steps + 1, 3), steps})
    assert measured == [step for step in more if "analysis/survival" in more[step]]
    last = report["measurements"][-1]
    assert last["kept"] == [layer["nonzero"] for layer in watched["layers"]]
    assert [layer["numel"] for layer in report["layers"]] == [
        layer["numel"] for layer in watched["layers"]
    ]
    assert more[steps]["analysis/snr_kept"] == last["now"]["snr"]["kept"]["mean"]


@pytest.mark.slow
def test_every_pruner_of_a_seed_has_the_same_ruler(tmp_path):
    totals = []
    for pruner in ("magnitude_dyn", "seven_pre", "set"):
        config = composed(
            "model=mlp", "model.widths=[24,24]", f"pruner={pruner}", "sparsity=0.8",
            "trainer.max_steps=8", "tracker.mode=disabled", f"cache_dir={tmp_path}",
            "analysis.every=8", "analysis.start_batches=5", "analysis.bins=15", "seed=3",
        )  # fmt: skip
        run_experiment(config, tmp_path / pruner, LocalRecord())
        report = json.loads((tmp_path / pruner / "analysis.json").read_text())
        start = report["measurements"][-1]["start"]["snr"]
        totals.append(np.add(start["kept"]["counts"], start["pruned"]["counts"]).tolist())
        assert len(report["edges"]["snr"]) == 16
    assert totals[0] == totals[1] == totals[2]
    assert sum(totals[0]) > 0


def test_without_batches_the_start_is_not_measured(tmp_path):
    config = composed(
        "model=mlp", "model.widths=[8]", "trainer.max_steps=4", "tracker.mode=disabled",
        "analysis.every=4", "analysis.start_batches=0", f"cache_dir={tmp_path}",
    )  # fmt: skip
    run_experiment(config, tmp_path / "a", LocalRecord())
    (line,) = map(json.loads, Path(tmp_path / "a/metrics.jsonl").read_text().splitlines())
    assert "analysis/snr_kept" in line
    assert not any("start" in key for key in line)


def test_histograms_stay_out_of_the_lines_of_figures(tmp_path):
    from test_tracking import info

    tracker = LocalRecord()
    tracker.start(info(tmp_path))
    tracker.log(1, {"loss": 0.5, "spread": Histogram([1, 2], [0.0, 0.5, 1.0])})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
