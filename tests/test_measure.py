"""Measuring: the variants compute what they should, and words follow figures."""

import json

import pytest
import torch
from torch import nn

from seven_exp.cli.measure import main
from seven_exp.export.exporting import export
from seven_exp.measure.csr import bytes_of, to_csr
from seven_exp.measure.measuring import reading
from seven_exp.measure.timing import in_turn, peak_memory
from seven_exp.measure.variants import Variant, fill, subject_of
from seven_exp.runs.restore import restore

CPU = torch.device("cpu")


def test_sparse_layers_compute_what_dense_ones_do(finished_run):
    source = restore(finished_run("unstructured"))
    inputs, _ = next(iter(source.data.test.epoch(0)))
    with torch.no_grad():
        expected = source.model(inputs)
        assert to_csr(source.model, set(source.masks), inputs) == len(source.masks)
        torch.testing.assert_close(source.model(inputs), expected, rtol=1e-4, atol=1e-5)


class Attending(nn.Module):
    """A layer with attention, called as its tests say, and an output layer."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call, self.out = layer, call, nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.call(self.layer, x))


def attend(layer, x):
    return layer(x, x, x, need_weights=False)[0]


LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    ("layer", "call", "sparse"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), attend, 3),
        (nn.MultiheadAttention(8, 2), attend, 1),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True), attend, 1),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True), attend, 1),
        (nn.MultiheadAttention(8, 2, batch_first=True), lambda m, x: m(x[:, :2], x, x)[0], 1),
        (nn.MultiheadAttention(8, 2, batch_first=True),
         lambda m, x: m(x, x, x, attn_mask=LATER)[0], 1),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda m, x: m(x), 1),
        (nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), lambda m, x: m(x, x), 3),
    ],
)  # fmt: skip
def test_attention_that_has_no_sparse_form_stays_dense(layer, call, sparse):
    model, x = Attending(layer, call).eval(), torch.randn(3, 5, 8)
    names = {name for name, p in model.named_parameters() if p.ndim == 2}
    with torch.no_grad():
        expected = model(x)
        assert to_csr(model, names, x) == sparse
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_bytes_of_a_sparse_matrix():
    linear = nn.Sequential(nn.Linear(10, 4, bias=False))
    with torch.no_grad():
        linear[0].weight[:, 3:] = 0.0
    assert bytes_of(linear) == 160
    to_csr(linear, {"0.weight"}, torch.ones(1, 10))
    index = linear[0].weight.col_indices().element_size()
    assert bytes_of(linear) == 12 * 4 + 12 * index + 5 * index


def test_every_variant_of_a_run(finished_run):
    subject = subject_of(finished_run("rows"), CPU, torch.float32)
    names = [variant.name for variant in subject.variants]
    assert names == ["dense", "zeros in place", "CSR", "small"]
    by_name = dict(zip(names, subject.variants, strict=True))
    masks = restore(finished_run("rows")).masks
    for name in masks:
        assert bool((by_name["dense"].model.get_parameter(name) != 0).all())
    record = json.loads((finished_run("rows") / "results.json").read_text())
    assert by_name["dense"].flops == record["flops_dense"]
    assert by_name["CSR"].flops == by_name["zeros in place"].flops == record["flops_sparse"]
    inputs, _ = next(iter(subject.data.test.epoch(0)))
    with torch.no_grad():
        expected = by_name["zeros in place"].model(inputs)
        for name in ("CSR", "small"):
            torch.testing.assert_close(by_name[name].model(inputs), expected)


def test_filling_touches_pruned_places_alone():
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    mask = torch.eye(4, dtype=torch.bool)
    fill(layer, {"weight": mask})
    assert torch.equal(layer.weight[mask], before[mask])
    assert not torch.equal(layer.weight[~mask], before[~mask])


def test_peak_memory_is_what_lives_at_once():
    x = torch.randn(64, 1024)

    def call():
        a = x + 1
        b = a * 2
        del a
        c = b + b
        return c.sum()

    size = 64 * 1024 * 4
    assert 2 * size <= peak_memory(call, CPU) < 2 * size + 4096


def test_calls_take_turns():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = in_turn(calls, rounds=3, threads=1, block=1e-4)
    assert list(times) == ["a", "b"]
    assert times["a"].ratio == 1.0
    assert times["b"].rounds == 3
    assert times["b"].low <= times["b"].median <= times["b"].high
    assert order[-1] == "b"  # there, back and there again


def test_words_follow_figures():
    def row(name, flops, ratio, low, high):
        times = {"ratio": ratio, "ratio_low": low, "ratio_high": high}
        return {"name": name, "flops": flops, "latency": times, "batch": times}

    rows = [
        row("dense", 100, 1.0, 1.0, 1.0),
        row("zeros in place", 50, 1.01, 0.97, 1.05),
        row("CSR", 50, 0.5, 0.4, 0.6),
        row("small", 50, 1.6, 1.5, 1.7),
    ]
    variants = [Variant(r["name"], nn.Identity(), 1, None, i != 1) for i, r in enumerate(rows)]
    zeros, csr, small = reading(rows, variants)
    assert "no difference" in zeros
    assert "no gain is possible" in zeros
    assert "theory: 2.00x" in zeros
    assert "slower (0.50x)" in csr
    assert "faster (1.60x)" in small


@pytest.mark.slow
def test_the_command_measures_runs_and_exports(finished_run, tmp_path, capsys):
    _, small = export(finished_run("rows"), "small", output=tmp_path / "small")
    assert main([str(small), "--repeats", "2", "--batch", "2", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "theory" in out
    facts = json.loads((small / "measure.json").read_text())
    assert [v["name"] for v in facts["variants"]] == ["dense", "small"]
    dense, less = facts["variants"]
    assert less["bytes"] < dense["bytes"]
    assert less["flops"] < dense["flops"]
    assert facts["batch_size"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repeats", "1"], "choose 2 or more"),
        (["--device", "cuda:7"], "device is 'cuda:7'"),
        (["--threads", "0"], "choose 1 or more"),
    ],
)
def test_mistakes_cost_one_line(tmp_path, capsys, arguments, words):
    if arguments[0] == "--device" and torch.cuda.device_count() > 7:
        pytest.skip("there is such a device")
    assert main([str(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert main([str(tmp_path)]) == 2
    assert "no results.json" in capsys.readouterr().err
