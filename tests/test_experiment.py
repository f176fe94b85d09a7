"""Whole runs in this process: identity, determinism, starts, times of pruning."""

import hashlib
import itertools
import json
import multiprocessing
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_conf import composed
from torch import nn

from seven_exp import runs
from seven_exp.config import ConfigError, RunConfig
from seven_exp.models import build_model
from seven_exp.pruning import PRUNERS, Pruner, create_pruner, prunable_layers
from seven_exp.runs.check import check
from seven_exp.runs.identity import fingerprint
from seven_exp.runs.plan import Plan
from seven_exp.runs.provenance import command
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord
from seven_exp.training.compute import Compute, layout_for
from seven_exp.training.distillation import Distillation
from seven_exp.training.flops import forward_flops
from seven_exp.training.loop import DivergedError
from seven_exp.training.pretrain import cached_start
from seven_exp.training.rewinding import Snapshot

SMALL = ["model=mlp", "model.widths=[24,24]", "trainer.epochs=2", "tracker.mode=disabled"]


def config_of(tmp_path: Path, *overrides: str) -> RunConfig:
    return composed(*SMALL, f"cache_dir={tmp_path / 'cache'}", *overrides)


def run(tmp_path: Path, name: str, *overrides: str) -> dict:
    folder = tmp_path / name
    run_experiment(config_of(tmp_path, *overrides), folder, LocalRecord())
    return json.loads((folder / "results.json").read_text())


def test_same_config_and_seed_same_figures_another_seed_others(tmp_path):
    one, two = run(tmp_path, "a", "seed=1"), run(tmp_path, "b", "seed=1")
    other = run(tmp_path, "c", "seed=2")
    assert one["metrics"] == two["metrics"]
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()
    assert one["metrics"] != other["metrics"]
    assert one["run_hash"] == two["run_hash"] != other["run_hash"]


@pytest.mark.parametrize("name", ["snip", "magnitude"])
def test_without_a_step_the_start_is_pruned_and_measured(tmp_path, name):
    short = [f"pruner={name}", "sparsity=0.6", "trainer.save_model=true"]
    record = run(tmp_path, "none", *short, "trainer.max_steps=0")
    whole = run(tmp_path, "dense", "trainer.max_steps=0", "pruner=dense", *short[2:])
    assert (record["status"], record["steps"]) == ("finished", 0)
    assert record["params_nonzero"] == int(0.4 * record["params_prunable"] + 1e-6)
    assert record["validation"]["accuracy"] == record["best"]["accuracy"]
    assert record["metrics"]["loss"] != whole["metrics"]["loss"]
    # What is kept is the start's to the bit.
    pruned, dense = (
        load_file(tmp_path / folder / "checkpoints/final.safetensors")
        for folder in ("none", "dense")
    )
    masks = runs.load_masks(tmp_path / "none/masks.safetensors")
    for key, start in dense.items():
        kept = masks.get(key, torch.ones_like(start, dtype=torch.bool))
        assert torch.equal(pruned[key], torch.where(kept, start, 0.0))


def test_without_a_step_nothing_prunes_during_training(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.max_steps is 0: seven_dyn prunes during"):
        check(config_of(tmp_path, "pruner=seven_dyn", "trainer.max_steps=0"))


def test_dropout_follows_the_seed_too(tmp_path):
    config = composed(
        "model.depth=1", "model.dropout=0.2", "trainer.max_steps=6", "tracker.mode=disabled",
        "pruner=seven_pre", "pruner.rounds=3", f"cache_dir={tmp_path}",
    )  # fmt: skip
    one, two = (run_experiment(config, tmp_path / name, LocalRecord()) for name in "ab")
    assert one["metrics"] == two["metrics"]


def test_the_record_is_complete(tmp_path):
    record = run(tmp_path, "a", "pruner=seven_dyn", "sparsity=0.8")
    assert set(record) >= {
        *("schema", "run_hash", "status", "pruner", "criterion", "when", "schedule", "scope"),
        *("pattern", "model", "dataset", "seed", "sparsity_target", "sparsity", "layers"),
        *("params_total", "params_prunable", "params_nonzero", "flops_dense", "flops_sparse"),
        *("params_zero", "zeros_total"),
        *("metrics", "validation", "splits", "test_examples", "validation_examples"),
        *("best", "steps", "seconds", "seconds_pruning", "versions", "device", "git"),
    }
    # 64 pixels, 24, 24, 10 classes; the head is not prunable
    assert record["params_prunable"] == 64 * 24 + 24 * 24
    assert record["params_total"] == 64 * 24 + 24 + 24 * 24 + 24 + 24 * 10 + 10
    assert record["params_nonzero"] == (64 * 24 + 24 * 24) // 5
    # two operations a weight of each Linear
    assert record["flops_dense"] == 2 * (64 * 24 + 24 * 24 + 24 * 10)
    assert record["flops_sparse"] == 2 * (record["params_nonzero"] + 24 * 10)
    assert record["params_zero"] == record["params_prunable"] - record["params_nonzero"]
    assert record["zeros_total"] == record["params_zero"] / record["params_total"]
    assert record["steps"] == 40  # two epochs of 20 batches: a tenth of 1,437 images is held out
    assert record["best"]["accuracy"] >= record["validation"]["accuracy"]


def test_the_record_says_what_files_of_ones_own_it_was_made_from(tmp_path):
    for folder, shade in (("ia", 10), ("ib", 200)):
        for split, kind, i in itertools.product(("train", "test"), ("cat", "dog"), range(2)):
            path = tmp_path / folder / split / kind / f"{i}{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade + i, shade, shade)).save(path)
    own = ["dataset=image_folder", "dataset.image_size=8", "trainer.batch_size=2"]
    one, two = (
        run(tmp_path, f"on {name}", *own, f"dataset.data_dir={tmp_path / name}", "trainer.epochs=1")
        for name in ("ia", "ib")
    )
    assert one["data_files"] == fingerprint(tmp_path / "ia") != two["data_files"]
    assert run(tmp_path, "published", "trainer.max_steps=1")["data_files"] is None


def test_what_is_saved_is_what_was_measured(tmp_path):
    record = run(tmp_path, "a", "pruner=magnitude", "sparsity=0.9")
    masks = runs.load_masks(tmp_path / "a/masks.safetensors")
    state = load_file(tmp_path / "a/checkpoints/final.safetensors")
    assert sum(int(m.sum()) for m in masks.values()) == (64 * 24 + 24 * 24) // 10
    for name, mask in masks.items():
        assert torch.equal(state[name] != 0, mask)
    zeros = sum(int((tensor == 0).sum()) for tensor in state.values())
    assert record["zeros_total"] == zeros / sum(tensor.numel() for tensor in state.values())


def test_a_run_whose_model_disagrees_with_its_masks_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(Pruner, "_zero", lambda self: None)
    with pytest.raises(RuntimeError, match="the model disagrees with its masks"):
        run(tmp_path, "a", "pruner=magnitude_dyn", "sparsity=0.5", "trainer.max_steps=4")
    record = json.loads((tmp_path / "a/results.json").read_text())
    assert record["status"] == "failed"
    assert "the model disagrees with its masks in 2 of 2 weights" in record["error"]
    assert "\n" not in record["error"]
    assert record["zeros_total"] == 0
    assert not (tmp_path / "a/checkpoints/final.safetensors").exists()


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_a_sparse_start_is_sparse_at_the_first_forward_pass(tmp_path, monkeypatch, name):
    seen = []

    def measured(self, *arguments, loss=Compute.loss):
        seen.append(sum(int((p == 0).sum()) for p in arguments[0].parameters()))
        return loss(self, *arguments)

    monkeypatch.setattr(Compute, "loss", measured)
    record = run(tmp_path, "a", f"pruner={name}", "sparsity=0.5", "trainer.max_steps=3")
    assert seen[0] == record["params_prunable"] - record["params_nonzero"]


def steps_at(tmp_path, name):
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["sparsity"] for line in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # moments at which the sparsity is still 0, and at which it is the target
        (["pruner=seven_pre", "pruner.rounds=4"], ([], [1, 44])),
        (["pruner=magnitude", "pruner.finetune_steps=0.25"], ([32], [33, 44])),
        (["pruner=magnitude", "pruner.finetune_steps=0"], ([43], [44])),
        (["pruner=magnitude", "pruner.finetune_steps=1.0"], ([], [1])),
        (
            ["pruner=seven_dyn", "schedule.begin_step=10", "schedule.end_step=0.5"],
            ([10], [22, 44]),
        ),
        (["pruner=snip", "pruner.when=during", "schedule.end_step=20"], ([2], [20])),
        (["pruner=dense"], ([1, 44], [])),
    ],
)
def test_each_pruner_acts_in_its_time(tmp_path, overrides, expected):
    run(tmp_path, "a", *overrides, "sparsity=0.5", "trainer.log_interval=1", "trainer.max_steps=44")
    sparsity = steps_at(tmp_path, "a")
    zero, full = expected
    assert [sparsity[step] for step in zero] == [0.0] * len(zero)
    assert [sparsity[step] for step in full] == [0.5] * len(full)


def test_best_is_taken_at_the_target_sparsity_alone(tmp_path):
    record = run(
        tmp_path, "a", "pruner=magnitude", "sparsity=0.95", "pruner.finetune_steps=2",
        "trainer.eval_interval=1",
    )  # fmt: skip
    lines = [json.loads(x) for x in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    late = {line["step"]: line["validation/accuracy"] for line in lines if line["step"] >= 38}
    assert record["best"]["accuracy"] == max(late.values())
    assert late[record["best"]["step"]] == record["best"]["accuracy"]
    assert max(line["validation/accuracy"] for line in lines) > record["best"]["accuracy"]


def test_a_dense_run_serves_every_sparsity(tmp_path):
    hashes = {
        runs.run_hash(config_of(tmp_path, "pruner=dense", f"sparsity={s}")) for s in (0.5, 0.9)
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["output_root=elsewhere"], True),
        (["tracker.mode=offline", "tracker.project=other"], True),
        (["trainer.log_interval=3"], True),
        (["analysis.every=5"], True),
        (["seed=7"], False),
        (["sparsity=0.71"], False),
        (["optimizer.lr=0.002"], False),
        (["pruner.alpha_1=0.7"], False),
        (["schedule.end_step=0.6"], False),
        (["model.widths=[24,25]"], False),
    ],
)
def test_identity_covers_what_decides_the_result(tmp_path, overrides, same):
    plain = runs.run_hash(config_of(tmp_path))
    assert (runs.run_hash(config_of(tmp_path, *overrides)) == plain) is same


def test_a_pretrained_start_is_shared_and_changes_nothing_but_the_start(tmp_path, monkeypatch):
    overrides = ["model.pretrain.epochs=2", "seed=3"]
    building = run(tmp_path, "builds", *overrides, "pruner=seven_pre", "pruner.rounds=5")
    (cached,) = (tmp_path / "cache/pretrained").glob("*.safetensors")
    written = cached.stat().st_mtime_ns
    reading = run(tmp_path, "reads", *overrides, "pruner=seven_pre", "pruner.rounds=5")
    other = run(tmp_path, "other", "model.pretrain.epochs=2", "seed=4", "pruner=magnitude")
    assert building["metrics"] == reading["metrics"]
    assert other["status"] == "finished"
    assert cached.stat().st_mtime_ns == written
    assert len(list((tmp_path / "cache/pretrained").glob("*.safetensors"))) == 1

    dense = run(tmp_path, "dense", *overrides, "pruner=dense", "trainer.max_steps=1")
    fresh = run(tmp_path, "fresh", "seed=3", "pruner=dense", "trainer.max_steps=1")
    assert dense["metrics"]["accuracy"] > fresh["metrics"]["accuracy"] + 0.3


def test_another_pretraining_is_another_start(tmp_path):
    for overrides in (["model.pretrain.lr=1e-3"], ["model.pretrain.lr=2e-3"]):
        run(tmp_path, "x", "model.pretrain.epochs=1", *overrides)
    assert len(list((tmp_path / "cache/pretrained").glob("*.safetensors"))) == 2


def _build_slowly(folder: str, counter: str) -> None:
    def build():
        with Path(counter).open("a") as file:
            file.write("built\n")
        return {"w": torch.arange(100_000.0)}

    state = cached_start(Path(folder), "key", build, {})
    assert torch.equal(state["w"], torch.arange(100_000.0))


def test_many_that_start_together_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), str(tmp_path / "count"))
    workers = [context.Process(target=_build_slowly, args=arguments) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert (tmp_path / "count").read_text() == "built\n"


def test_a_broken_cache_is_built_anew(tmp_path, caplog):
    state = {"w": torch.ones(3)}
    cached_start(tmp_path, "key", lambda: state, {})
    path = tmp_path / "key.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    again = cached_start(tmp_path, "key", lambda: {"w": torch.zeros(3)}, {})
    assert torch.equal(again["w"], torch.zeros(3))
    assert "broken" in caplog.text
    assert torch.equal(load_file(path)["w"], torch.zeros(3))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_options_of_the_trainer(tmp_path, precision):
    record = run(
        tmp_path, "a", f"trainer.precision={precision}", "trainer.grad_clip=0.1", "optimizer=sgd",
        "optimizer.warmup_steps=0.2", "trainer.log_interval=1", "trainer.save_model=false",
        "trainer.max_steps=44",
    )  # fmt: skip
    assert record["status"] == "finished"
    assert not (tmp_path / "a/checkpoints").exists()
    lines = [json.loads(x) for x in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines]
    # 9 of 44 steps of warm-up to 0.1, then half a cosine
    assert rates[0] == pytest.approx(0.1 / 9)
    assert rates[8] == pytest.approx(0.1)
    assert rates == sorted(rates[:9]) + sorted(rates[9:], reverse=True)


@pytest.mark.slow
def test_seed_recipes_run_as_they_stand(tmp_path):
    for preset, masks in (("seed_pre", 53), ("seed_dyn", 53)):
        config = composed(
            f"experiment={preset}", "model.pretrained=false", "dataset=digits", "sparsity=0.3",
            "trainer.max_steps=2", "trainer.epochs=2", "trainer.batch_size=8",
            "schedule.interval=1", "tracker.mode=disabled", f"cache_dir={tmp_path}",
        )  # fmt: skip
        folder = tmp_path / preset
        record = run_experiment(config, folder, LocalRecord())
        assert len(record["layers"]) == masks
        for layer in record["layers"]:
            assert layer["nonzero"] == layer["numel"] * 7 // 10


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 1),
        (["threads=2"], 2),
        (["model=mlp", "model.widths=[2000,2000]"], 3),
        # Fewer weights than a million, but each of them is used at up to 64 places.
        (["model=resnet20"], 3),
        (["model=resnet20", "trainer.batch_size=8"], 1),
        (["model=resnet20", "trainer.batch_size=8", "threads=2"], 2),
    ],
)
def test_threads(tmp_path, monkeypatch, overrides, expected):
    before = torch.get_num_threads()
    monkeypatch.setattr("seven_exp.runs.parts._ALL_THREADS", 3)
    try:
        base = ["trainer.max_steps=2", "tracker.mode=disabled", f"cache_dir={tmp_path}"]
        run_experiment(composed(*base, *overrides), tmp_path / "a", LocalRecord())
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_compiled_model_is_trained_and_its_own_names_are_saved(tmp_path, monkeypatch):
    compiled, real = [], torch.compile

    def compile_eagerly(model):
        compiled.append(model)
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    plain = run(tmp_path, "plain", "trainer.max_steps=10")
    record = run(tmp_path, "compiled", "trainer.max_steps=10", "trainer.compile=true")
    assert len(compiled) == 1
    assert record["metrics"] == pytest.approx(plain["metrics"], rel=1e-5)
    state = load_file(tmp_path / "compiled/checkpoints/final.safetensors")
    assert set(state) == set(compiled[0].state_dict())


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    run(tmp_path, "source", "pruner=dense", "trainer.max_steps=2")
    path = tmp_path / "source/checkpoints/final.safetensors"
    other = tmp_path / "copy.safetensors"
    other.write_bytes(path.read_bytes())
    hashes = [runs.run_hash(config_of(tmp_path, f"model.checkpoint={p}")) for p in (path, other)]
    assert hashes[0] == hashes[1]
    run(tmp_path, "source", "pruner=dense", "trainer.max_steps=3")
    assert runs.run_hash(config_of(tmp_path, f"model.checkpoint={path}")) != hashes[0]


# Their patterns are for Transformers: tests/test_structured.py.
STRUCTURED = ["flap", "llm_pruner", "short_gpt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in PRUNERS if PRUNERS[name].prunes and name not in STRUCTURED]
)
def test_every_pruner_from_the_command_line_s_config(tmp_path, name):
    record = run(tmp_path, "a", f"pruner={name}", "sparsity=0.75")
    assert record["status"] == "finished"
    assert record["criterion"] == PRUNERS[name].criterion
    assert record["scope"] == PRUNERS[name].scope
    sizes = [layer["numel"] for layer in record["layers"]]
    kept = [layer["nonzero"] for layer in record["layers"]]
    if name == "soft_movement":  # by itself, of which there is little in so few steps
        assert sum(kept) >= sum(sizes) // 4
    elif record["scope"] == "global":
        assert sum(kept) == sum(sizes) // 4
    elif record["scope"] == "per_layer":
        assert kept == [n // 4 for n in sizes]
    else:
        assert sum(kept) == pytest.approx(sum(sizes) / 4, abs=len(sizes))


def test_patterns_from_the_command_line(tmp_path):
    overrides = ["pruner=seven_dyn", "sparsity=0.5", "pruner.pattern=2:4"]
    record = run(tmp_path, "a", *overrides)
    assert record["pattern"] == "2:4"
    for mask in runs.load_masks(tmp_path / "a/masks.safetensors").values():
        assert (mask.view(-1, 4).sum(1) == 2).all()
    floored = run(tmp_path, "b", "pruner=random", "sparsity=0.9", "pruner.min_density=0.08")
    assert all(x["nonzero"] >= int(0.08 * x["numel"]) for x in floored["layers"])


KEEPS = """
import resource, torch
from seven_exp.training.freed_memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(2**24)  # more than malloc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = min(faults() for _ in range(10))
kept = keep_freed_memory()
print(before, kept, min(faults() for _ in range(10)))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other mallocs are left alone")
def test_freed_memory_comes_back_without_new_pages():
    done = subprocess.run([sys.executable, "-c", KEEPS], check=True, capture_output=True, text=True)
    before, kept, after = done.stdout.split()
    assert int(after) < int(before) / 10, (before, after)
    assert kept == "True"


@pytest.mark.parametrize(
    ("name", "expected"), [("resnet20", True), ("vit_tiny", False), ("mlp", False)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_between_convolutions_lies_pixel_by_pixel(name, channels, expected):
    arguments = {"widths": [4]} if name == "mlp" else {}
    model = build_model(name, num_classes=3, image_size=8, channels=channels, **arguments)
    images, targets = torch.randn(4, channels, 8, 8), torch.tensor([0, 1, 2, 0])
    compute = Compute(torch.device("cpu"), layout=layout_for(model, torch.device("cpu")))
    inputs, _ = compute.place((images, targets))
    assert torch.equal(inputs, images)
    if not expected:
        assert inputs.stride() == images.stride()
        return
    layouts = []
    for layer in prunable_layers(model):
        layer.module.register_forward_hook(
            lambda *call: layouts.append(call[-1].is_contiguous(memory_format=torch.channels_last))
        )
    loss, logits = compute.loss(model, inputs, targets)
    assert layouts == [True] * 21
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-4)
    loss.backward()
    # What prunes and saves sees weights and gradients as ever.
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in model.parameters())


def test_sparsities_of_single_layers(tmp_path):
    record = run(tmp_path, "a", "pruner=magnitude_pre", "pruner.sparsities={hidden1:0.25}")
    kept = {layer["name"]: layer["nonzero"] for layer in record["layers"]}
    assert kept == {"hidden0.weight": int(0.3 * 64 * 24 + 1e-6), "hidden1.weight": 24 * 24 * 3 // 4}


def test_distillation_is_the_published_loss():
    torch.manual_seed(0)
    student, teacher = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    compute = Compute(torch.device("cpu"))
    loss, logits = Distillation(teacher, 0.3, 2.0).loss(compute, student, x, y)
    p, q = ((m(x).double() / 2).softmax(1) for m in (teacher, student))
    divergence = (p * (p / q).log()).sum(1).mean()
    own = -student(x).double().log_softmax(1)[torch.arange(5), y].mean()
    assert torch.equal(logits, student(x))
    assert loss.item() == pytest.approx((0.7 * own + 0.3 * 4 * divergence).item(), rel=1e-5)


def test_the_dense_start_teaches(tmp_path):
    overrides = ["model.pretrain.epochs=2", "sparsity=0.9", "pruner=magnitude_pre"]
    plain = run(tmp_path, "plain", *overrides)
    taught = run(tmp_path, "taught", *overrides, "trainer.distill=0.7")
    assert taught["metrics"] != plain["metrics"]
    with pytest.raises(ConfigError, match="teacher would be untrained"):
        check(config_of(tmp_path, "trainer.distill=0.7"))


def test_lottery_tickets_go_back_to_an_early_moment_at_each_level(tmp_path, monkeypatch):
    restored = []

    class Watched(Snapshot):
        def __init__(self, model, optimizer):
            super().__init__(model, optimizer)
            self.model, self.optimizer = model, optimizer
            self.early = [p.detach().clone() for p in model.parameters()]

        def restore(self):
            assert any(
                (p != e).any() for p, e in zip(self.model.parameters(), self.early, strict=True)
            )
            super().restore()
            assert all(
                torch.equal(p, e) for p, e in zip(self.model.parameters(), self.early, strict=True)
            )
            steps = {int(state["step"]) for state in self.optimizer.state.values()}
            restored.append(steps)

    monkeypatch.setattr("seven_exp.runs.session.Snapshot", Watched)
    record = run(
        tmp_path, "imp", "pruner=imp", "pruner.levels=3", "pruner.finetune_steps=0.7",
        "sparsity=0.875", "trainer.log_interval=1", "schedule=exponential", "trainer.max_steps=44",
    )  # fmt: skip
    # 44 steps: 14 dense, then 10 a level, each from the 4th step's weights
    assert restored == [{4}] * 3
    assert [level["step"] for level in record["levels"]] == [14, 24, 34]
    assert [level["sparsity"] for level in record["levels"]] == [0.0, 0.5, 0.75]
    assert record["levels"][0]["accuracy"] > 0.15
    assert record["sparsity"] == 0.875
    assert record["steps"] == 44
    sparsity = steps_at(tmp_path, "imp")
    assert [sparsity[step] for step in (13, 14, 23, 24, 33, 34)] == [0, 0.5, 0.5, 0.75, 0.75, 0.875]


def test_a_snapshot_brings_training_back_to_the_bit():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def train_on():
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            model(torch.randn(6, 4, generator=generator)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [tensor.clone() for tensor in model.state_dict().values()]

    train_on()
    snapshot = Snapshot(model, optimizer)
    ends = [train_on()]
    for _ in range(2):
        snapshot.restore()
        ends.append(train_on())
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(ends[0], end, strict=True))


def test_a_rewound_learning_rate_runs_its_last_part_again(tmp_path):
    run(
        tmp_path, "a", "pruner=magnitude", "pruner.rewind=lr", "pruner.finetune_steps=11",
        "optimizer.lr_schedule=linear", "optimizer.lr=0.033", "optimizer.warmup_steps=0",
        "trainer.log_interval=1", "trainer.max_steps=44", "sparsity=0.5",
    )  # fmt: skip
    rates = [json.loads(x)["lr"] for x in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    whole_way = [0.033 * (1 - t / 33) for t in range(33)]
    assert rates == pytest.approx([*whole_way, *whole_way[-11:]])


@pytest.mark.parametrize("pruner", ["magnitude", "lamp"])
def test_levels_prune_the_same_share_each_whatever_comes_after_training(tmp_path, pruner):
    record = run(
        tmp_path, "a", f"pruner={pruner}", "pruner.levels=3", "pruner.finetune_steps=0.6",
        "pruner.rewind=lr", "sparsity=0.875", "trainer.epochs=1",
    )  # fmt: skip
    assert [level["sparsity"] for level in record["levels"]] == [0.0, 0.5, 0.75]
    assert record["sparsity"] == 0.875


def test_an_output_layer_of_zeros_ends_a_run_that_prunes_by_its_start(tmp_path, monkeypatch):
    monkeypatch.setattr("seven_exp.models.vision_transformer.wake_head", lambda model: None)
    config = composed(
        *("model.depth=1", "pruner=seven_pre", "pruner.rounds=2", "trainer.max_steps=2"),
        *("tracker.mode=disabled", f"cache_dir={tmp_path}"),
    )
    with pytest.raises(DivergedError, match=r"heads\.head\.weight is all zero"):
        run_experiment(config, tmp_path / "run", LocalRecord())
    record = json.loads((tmp_path / "run/results.json").read_text())
    assert (record["status"], record["sparsity"]) == ("failed", 0)
    assert "heads.head.weight is all zero: initialise it" in record["error"]


def test_a_loss_to_prune_by_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(DivergedError, match="loss of a calibration batch"):
        run(
            tmp_path, "a", "pruner=fisher_pre", "pruner.when=after", "sparsity=0.5",
            "optimizer=sgd", "optimizer.lr=1e30", "trainer.log_interval=1000", "trainer.epochs=1",
            "dataset.validation=0",  # which would be measured before
        )  # fmt: skip
    record = json.loads((tmp_path / "a/results.json").read_text())
    assert record["status"] == "failed"


@pytest.mark.parametrize("accumulate", [1, 4, 8, 12, 40])
def test_accumulating_takes_as_many_passes_over_the_data(tmp_path, accumulate):
    config = config_of(tmp_path, "trainer.epochs=30", f"trainer.accumulate={accumulate}")
    taken = Plan.of(config, 23).steps * accumulate
    assert 30 * 23 - accumulate < taken <= 30 * 23


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pruner=magnitude", "pruner.rewind=lr", "pruner.finetune_steps=0.6"], "rewind 24 steps"),
        (["pruner=seven_dyn", "pruner.rewind=lr"], r"pruner\.rewind is lr"),
        (["pruner=snip", "pruner.levels=2"], r"pruner\.levels is 2"),
        (["pruner=imp", "pruner.levels=50"], "leave no step for each"),
    ],
)
def test_levels_and_rewinding_are_for_pruning_after_training(tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words):
        check(config_of(tmp_path, *overrides))


def test_frozen_parameters_stay_and_can_still_be_pruned_before(tmp_path):
    frozen = run(
        tmp_path, "a", "model.freeze=[hidden0]", "pruner=seven_pre", "pruner.rounds=3",
        "sparsity=0.5",
    )  # fmt: skip
    weights = load_file(tmp_path / "a/checkpoints/final.safetensors")
    torch.manual_seed(0)
    start = build_model("mlp", num_classes=10, image_size=8, channels=1, widths=[24, 24])
    masks = runs.load_masks(tmp_path / "a/masks.safetensors")
    mask = masks["hidden0.weight"]
    assert torch.equal(weights["hidden0.weight"], start.hidden0.weight.detach() * mask)
    assert not torch.equal(weights["hidden1.weight"], start.hidden1.weight.detach())
    assert 0 < int(mask.sum()) < mask.numel()
    assert frozen["sparsity"] == 0.5
    with pytest.raises(ConfigError, match=r"pattern 'embedding\*' matches no parameter"):
        run(tmp_path, "b", "model.freeze=['embedding*']")
    with pytest.raises(ConfigError, match=r"hidden0\.weight is frozen"):
        run(tmp_path, "c", "model.freeze=[hidden0]", "pruner=movement")


def test_hidden_states_are_distilled_by_their_mean_squared_distance():
    torch.manual_seed(0)

    def chain():
        return torch.nn.Sequential(
            *(torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()) for _ in range(3))
        )

    student, teacher = chain(), chain()
    x, y = torch.randn(4, 5), torch.randint(5, (4,))
    compute = Compute(torch.device("cpu"))
    plain = Distillation(teacher, 0.3, 2.0).loss(compute, student, x, y)[0]
    whole = Distillation(teacher, 0.3, 2.0, 0.7).loss(compute, student, x, y)[0]
    distances, own, other = [], x, x
    for mine, theirs in zip(student, teacher, strict=True):
        own, other = mine(own), theirs(other)
        distances.append(((own - other) ** 2).mean())
    torch.testing.assert_close(whole - plain, 0.7 * sum(distances) / 3)
    (slope,) = torch.autograd.grad(whole, [student[0][0].weight])
    assert slope.abs().sum() > 0
    assert not any(module._forward_hooks for module in [*student.modules(), *teacher.modules()])
    with pytest.raises(ValueError, match="the model has none"):
        Distillation(torch.nn.Linear(5, 5), 0.3, 2.0, 0.7)


def test_hidden_distillation_in_a_run_of_a_transformer(tmp_path):
    overrides = [
        "model.depth=2", "model.pretrain.epochs=1", "trainer.max_steps=8", "sparsity=0.5",
        "tracker.mode=disabled", f"cache_dir={tmp_path}",
    ]  # fmt: skip
    records = [
        run_experiment(
            composed(*overrides, f"trainer.distill_hidden={w}"), tmp_path / w, LocalRecord()
        )
        for w in ("0.0", "5.0")
    ]
    assert records[0]["metrics"]["loss"] != records[1]["metrics"]["loss"]
    assert records[0]["run_hash"] != records[1]["run_hash"]


def test_a_record_says_who_made_it_and_when(tmp_path, monkeypatch):
    command = ["train.py", "sparsity=0.5", "model.widths=[8]", "+wandb.api_key=abc123"]
    monkeypatch.setattr(sys, "argv", command)
    before = datetime.now(UTC).replace(microsecond=0)
    record = run(tmp_path, "a", "trainer.max_steps=4")
    after = datetime.now(UTC)
    started, ended = (datetime.fromisoformat(record[key]) for key in ("started", "ended"))
    assert before <= started <= ended <= after
    assert started.utcoffset() == timedelta(0)
    assert record["host"] == platform.node()
    assert record["processor"]
    assert record["command"] == "train.py sparsity=0.5 'model.widths=[8]' '+wandb.api_key=***'"
    for name in ("masks.safetensors", "checkpoints/final.safetensors"):
        content = (tmp_path / "a" / name).read_bytes()
        assert record["sha256"][name] == hashlib.sha256(content).hexdigest()


def test_runs_that_start_alike_say_so(tmp_path):
    starts = [
        run(tmp_path, str(i), "trainer.max_steps=4", *overrides)["sha256"]["start"]
        for i, overrides in enumerate((["sparsity=0.5"], ["pruner=magnitude"], ["seed=1"]))
    ]
    assert starts[0] == starts[1] != starts[2]


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("dataset.tokenizer=bert_base", "dataset.tokenizer=bert_base"),
        ("HF_TOKEN=hf_abc", "'HF_TOKEN=***'"),
        ("--password=a@b=c", "'--password=***'"),
        ("model.checkpoint=https://me:hidden@host/x", "'model.checkpoint=https://me:***@host/x'"),
        ("url=http://host:8080/x@y", "url=http://host:8080/x@y"),
    ],
)
def test_a_command_is_recorded_without_secrets(argument, shown):
    assert command([argument]) == shown


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_operations_of_recurrent_layers_are_counted_step_by_step(kind, gates):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = kind(4, 6, batch_first=True)

        def forward(self, x):
            return self.recurrent(x)[0][:, -1]

    model = Last()
    pruner = create_pruner("magnitude", model, sparsity=0.5)
    pruner.prune()
    dense, sparse = forward_flops(model, torch.randn(2, 5, 4), pruner.layers, pruner.layer_counts)
    assert dense == 2 * 5 * gates * 6 * (4 + 6)
    assert sparse == dense / 2


class Calls(nn.Module):
    """Calls a module as its tests say."""

    def __init__(self, module, call):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x):
        return self.call(self.module, x)


def operations(module, call, x):
    """Dense, and with all weights pruned."""
    model = Calls(module, call)
    layers = prunable_layers(model, exclude_defaults=False)
    none = {layer.name: (layer.weight.numel(), 0) for layer in layers}
    return forward_flops(model, x, layers, none)


@pytest.mark.parametrize(
    ("queries", "call"),
    [
        (5, lambda attend, x: attend(x, x, x)),
        (5, lambda attend, x: attend(query=x, key=x, value=x)),
        (1, lambda attend, x: attend(x[:, :1], x, x)),
        (2, lambda attend, x: attend(x[:, :2], key=x, value=x)),
    ],
)
def test_an_empty_attention_has_only_its_products_of_queries_and_keys(queries, call):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    dense, sparse = operations(attention, lambda m, x: call(m, x)[0], torch.randn(3, 5, 8))
    scores = 2 * queries * 5 * 8  # of all heads; as many to weight the values
    assert dense == 2 * 8 * 8 * (2 * queries + 2 * 5) + 2 * scores
    assert sparse == 2 * scores


def test_keys_and_values_of_another_width_are_as_many_as_they_are():
    attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6)
    queries = torch.randn(3, 2, 8)
    dense, sparse = operations(attention, lambda m, x: m(queries, x, x)[0], torch.randn(3, 5, 6))
    scores = 2 * 2 * 5 * 8
    assert dense == 2 * 8 * (2 * 2 * 8 + 2 * 5 * 6) + 2 * scores
    assert sparse == 2 * scores


def test_a_weight_that_two_modules_share_is_skipped_in_both():
    pair = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    pair[2].weight = pair[0].weight
    assert operations(pair, lambda pair, x: pair(x), torch.randn(4, 8)) == (2 * 2 * 64, 0)


def test_packed_sequences_have_no_operations_for_their_padding():
    def call(recurrent, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, [5, 2], batch_first=True)
        return recurrent(packed)[1]

    dense, sparse = operations(nn.GRU(4, 6, batch_first=True), call, torch.randn(2, 5, 4))
    assert dense == 2 * (5 + 2) * 3 * 6 * (4 + 6) // 2  # of one example
    assert sparse == 0
