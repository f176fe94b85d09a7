"""Exports: a file read again equals the written model; mistakes cause one line."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_conf import composed

from seven_exp import runs
from seven_exp.cli.export import main
from seven_exp.cli.measure import main as measure
from seven_exp.config import ConfigError
from seven_exp.export import exporting
from seven_exp.export.comparison import compare
from seven_exp.export.exporting import export, load
from seven_exp.export.formats import ExportError, check_format
from seven_exp.export.semi_structured import accelerate, two_of_four
from seven_exp.export.sparse import compress, decompress
from seven_exp.runs.restore import restore
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord


def bits(state):
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def test_restored_to_the_bit(finished_run):
    folder = finished_run("unstructured")
    source = restore(folder)
    assert bits(source.model.state_dict()) == bits(
        load_file(folder / "checkpoints/final.safetensors")
    )
    record = json.loads((folder / "results.json").read_text())
    assert source.record["run_hash"] == record["run_hash"]
    assert not source.model.training
    masks = runs.load_masks(folder / "masks.safetensors")
    assert all(bool((source.model.get_parameter(n)[~m] == 0).all()) for n, m in masks.items())


def test_logits_that_are_no_numbers_are_a_difference(finished_run):
    source = restore(finished_run("unstructured"))

    def broken(inputs):
        """NaN for an image of the first class, which is still chosen."""
        logits = source.model(inputs)
        logits[logits.argmax(1).argmin()] = torch.nan
        return logits

    def masked(inputs):
        """One class is ruled out."""
        return source.model(inputs).index_fill(1, torch.tensor([3]), -torch.inf)

    split, task = source.data.test, source.data.task
    assert not compare(source.model, broken, split, task, 1).same
    assert compare(masked, masked, split, task, 1).difference == 0


def test_dense_loads_in_torchvision_unchanged(finished_run, tmp_path):
    from torchvision.models import VisionTransformer

    facts, folder = export(finished_run("unstructured"), "dense", output=tmp_path / "dense")
    model = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16,
        num_classes=10,
    )  # fmt: skip
    model.conv_proj = torch.nn.Conv2d(1, 16, 4, 4)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    assert bits(model.state_dict()) == bits(
        restore(finished_run("unstructured")).model.state_dict()
    )
    assert facts["comparison"]["difference"] == 0
    assert facts["comparison"]["examples"] == 360
    record = json.loads((finished_run("unstructured") / "results.json").read_text())
    assert facts["comparison"]["value"] == pytest.approx(record["metrics"]["accuracy"], abs=1e-9)


@pytest.mark.parametrize(("pattern", "format"), [("unstructured", "sparse"), ("2:4", "2:4")])
def test_compressed_files_give_back_every_bit(finished_run, tmp_path, pattern, format):
    source = restore(finished_run(pattern))
    facts, folder = export(finished_run(pattern), format, output=tmp_path / "out")
    again = load(folder)
    assert bits(again.model.state_dict()) == bits(source.model.state_dict())
    weights = sum(mask.numel() for mask in source.masks.values())
    kept = sum(int(mask.sum()) for mask in source.masks.values())
    state = load_file(folder / "model.safetensors")
    values = sum(t.numel() for n, t in state.items() if n.endswith(".compressed"))
    places = sum(t.numel() for n, t in state.items() if n.endswith(".bitmask"))
    assert (values, places) == (kept, weights // 8)
    assert facts["bytes"] == (folder / "model.safetensors").stat().st_size


def test_the_layout_of_sparse_bitmask():
    weight = torch.randn(5, 11, 3)
    mask = torch.rand(weight.shape) < 0.4
    mask[2] = False
    weight[~mask] = 0.0
    first = mask.nonzero()[0]
    weight[tuple(first)] = -0.0  # a kept weight that is zero is a kept weight
    state = compress("w", weight, mask)
    rows = mask.reshape(5, -1).numpy()
    assert np.array_equal(state["w.bitmask"], np.packbits(rows, axis=1, bitorder="little"))
    assert np.array_equal(state["w.compressed"], weight.numpy()[mask.numpy()])
    counts = rows.sum(1)
    assert state["w.row_offsets"].tolist() == [int(counts[:i].sum()) for i in range(5)]
    dense = decompress({**state, "other.weight": torch.ones(2)})
    assert bits(dense) == bits({"w": weight, "other.weight": torch.ones(2)})
    assert dense["w"].shape == weight.shape


def test_two_of_four_fills_up_and_refuses():
    mask = torch.tensor([[True, False, False, False, False, False, False, False]])
    full = two_of_four("w", mask)
    assert full.view(-1, 4).sum(1).tolist() == [2, 2]
    assert bool((full >= mask).all())
    with pytest.raises(ExportError, match="keeps 3 of four"):
        two_of_four("w", torch.tensor([[True, True, True, False]]))
    with pytest.raises(ExportError, match="matrices"):
        two_of_four("w", torch.ones(2, 4, 3, 3, dtype=torch.bool))
    with pytest.raises(ExportError, match="no multiple of 4"):
        two_of_four("w", torch.ones(2, 6, dtype=torch.bool))


def test_sparse_kernels_take_linear_layers_outside_attention(finished_run, monkeypatch):
    taken = []
    monkeypatch.setattr(
        torch.sparse, "to_sparse_semi_structured", lambda w: taken.append(w.shape) or w
    )
    source = restore(finished_run("2:4"))
    done = accelerate(source.model, source.masks)
    assert [name for name in source.masks if ".mlp." in name] == done
    assert len(taken) == len(done) == 4


@pytest.mark.parametrize("pattern", ["rows", "heads"])
def test_small_is_smaller_and_says_the_same(finished_run, tmp_path, pattern):
    source = restore(finished_run(pattern))
    facts, folder = export(finished_run(pattern), "small", output=tmp_path / "small")
    again = load(folder)
    inputs, _ = next(iter(source.data.test.epoch(0)))
    with torch.no_grad():
        torch.testing.assert_close(again.model(inputs), source.model(inputs))
    found = facts["comparison"]
    assert found["difference"] < 1e-5
    assert found["value"] == found["other"]
    left = sum(p.numel() for p in again.model.parameters())
    assert left == facts["params"] < sum(p.numel() for p in source.model.parameters())
    assert facts["bytes"] < facts["bytes_dense"]
    units = {part["unit"] for part in facts["shrunk"]}
    assert units == ({"neurons"} if pattern == "rows" else {"heads", "dimensions"})


@pytest.mark.slow
def test_onnx_of_a_run_and_of_its_small_export(finished_run, tmp_path):
    pytest.importorskip("onnxruntime")
    _, small = export(finished_run("heads"), "small", output=tmp_path / "small")
    whole, _ = export(finished_run("heads"), "onnx", output=tmp_path / "onnx")
    facts, folder = export(small, "onnx", output=tmp_path / "small_onnx")
    for each in (whole, facts):
        assert each["comparison"]["difference"] < 1e-4
        assert each["comparison"]["value"] == each["comparison"]["other"]
    assert facts["bytes"] < whole["bytes"]
    # Another batch size than the one it was made with, and no path of this machine inside.
    model = load(folder).model
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()


def test_half_precision(finished_run, tmp_path):
    facts, folder = export(
        finished_run("unstructured"), "sparse", dtype="float16", output=tmp_path / "x"
    )
    state = load_file(folder / "model.safetensors")
    assert {t.dtype for n, t in state.items() if n.endswith("compressed")} == {torch.float16}
    assert facts["comparison"]["difference"] == 0  # to the rounded weights
    full, _ = export(finished_run("unstructured"), "sparse", output=tmp_path / "y")
    floats = sum(t.numel() for t in state.values() if t.is_floating_point())
    assert full["bytes"] - facts["bytes"] == pytest.approx(2 * floats, abs=64)  # the header's text
    with pytest.raises(ExportError, match="float32"):
        export(finished_run("unstructured"), "onnx", dtype="float16", output=tmp_path / "z")


def test_nothing_is_left_of_an_export_that_fails_its_check(finished_run, tmp_path, monkeypatch):
    real = exporting.files_of("dense").read

    def broken(folder, facts, blank):
        model = real(folder, facts, blank)
        with torch.no_grad():
            model.get_parameter("heads.head.bias")[0] += 1e-3
        return model

    monkeypatch.setattr("seven_exp.export.dense.read", broken)
    with pytest.raises(ExportError, match=r"heads\.head\.bias is not what was written"):
        export(finished_run("unstructured"), "dense", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_takes_the_place_of_an_older_one_alone(finished_run, tmp_path):
    out = tmp_path / "out"
    export(finished_run("unstructured"), "dense", output=out)
    (out / "note.txt").write_text("of the old one")
    export(finished_run("unstructured"), "sparse", output=out)
    assert sorted(p.name for p in out.iterdir()) == ["export.json", "model.safetensors"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    with pytest.raises(ExportError, match="something else"):
        export(finished_run("unstructured"), "dense", output=mine)


# The command line


def said(capsys, *arguments):
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr()


def test_the_command_prints_a_table_and_writes_the_facts(finished_run, tmp_path, capsys):
    folder = shutil.copytree(finished_run("unstructured"), tmp_path / "run")
    code, out = said(capsys, folder, "--format", "dense", "--format", "sparse", "--batches", 1)
    assert code == 0
    assert "of dense" in out.out
    facts = json.loads((folder / "exports/sparse/export.json").read_text())
    assert facts["comparison"]["examples"] == 64
    assert f"{facts['bytes']:,}" in out.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "densse"], "unknown format 'densse': did you mean 'dense'?"),
        (["--format", "2:4"], "keeps"),
        (["--format", "small"], "pruner.pattern=coupled, rows, heads or depth"),
        (["--format", "dense", "--batches", "0"], "choose 1 or more"),
        (["--format", "dense", "--format", "sparse", "--output", "x"], "one --format"),
    ],
)
def test_mistakes_cost_one_line(finished_run, capsys, arguments, words):
    code, out = said(capsys, finished_run("unstructured"), *arguments)
    assert code == 2
    assert words in out.err
    assert out.err.count("\n") == 1


def test_folders_that_are_no_finished_run(finished_run, tmp_path, capsys):
    cases = {"no folder": tmp_path / "nowhere", "it has no results.json": tmp_path / "empty"}
    (tmp_path / "empty").mkdir()
    failed = tmp_path / "failed"
    shutil.copytree(finished_run("unstructured"), failed)
    record = json.loads((failed / "results.json").read_text())
    (failed / "results.json").write_text(json.dumps({**record, "status": "failed"}))
    cases["failed, not finished"] = failed
    bare = tmp_path / "bare"
    shutil.copytree(finished_run("unstructured"), bare)
    shutil.rmtree(bare / "checkpoints")
    cases["trainer.save_model=false"] = bare
    for words, folder in cases.items():
        code, out = said(capsys, folder, "--format", "dense")
        assert (code, out.err.count("\n")) == (2, 1)
        assert words in out.err


@pytest.mark.parametrize(
    ("key", "broken"),
    [("model", []), ("dataset", "digits"), ("trainer", None), ("plugins", None), ("seed", "0")],
)
def test_a_record_with_half_a_config_costs_one_line(finished_run, tmp_path, capsys, key, broken):
    record = json.loads((finished_run("unstructured") / "results.json").read_text())
    rest = {name: value for name, value in record["config"].items() if name != key}
    for config in (rest, {**rest, key: broken}):
        (tmp_path / "results.json").write_text(json.dumps({**record, "config": config}))
        code, out = said(capsys, tmp_path, "--format", "dense")
        assert (code, out.err.count("\n")) == (2, 1)
        assert f"{key} is missing or broken" in out.err


def without_checksums(folder: Path, **changes) -> None:
    """Make a run's record one of an older version."""
    record = json.loads((folder / "results.json").read_text())
    del record["sha256"]
    (folder / "results.json").write_text(json.dumps({**record, **changes}))


@pytest.fixture
def copied_run(finished_run, tmp_path):
    source, without = finished_run("unstructured"), shutil.ignore_patterns("exports")
    return Path(shutil.copytree(source, tmp_path / "run", ignore=without))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["masks.safetensors", "checkpoints/final.safetensors"])
@pytest.mark.parametrize("another", [True, False], ids=["another run's", "a bit flipped"])
def test_files_that_the_run_did_not_write_are_refused(
    copied_run, finished_run, capsys, name, another
):
    if another:
        shutil.copy(finished_run("rows") / name, copied_run / name)
    else:
        flip_a_bit(copied_run / name)
    code, out = said(capsys, copied_run, "--format", "dense")
    assert (code, out.err.count("\n")) == (2, 1)
    assert f"'{copied_run / name}' is not the file that the run wrote: its SHA-256 is" in out.err
    assert not (copied_run / "exports").exists()


def test_an_older_record_is_taken_without_checksums_which_is_said_once(copied_run, caplog):
    without_checksums(copied_run)
    for _ in range(2):
        restore(copied_run)
    assert caplog.text.count("has no checksums: nothing is verified") == 1


def test_a_model_that_is_not_as_good_as_its_record_is_not_exported(copied_run, tmp_path):
    """Weights of another run, or other data: what no checksum of an older record shows."""
    without_checksums(copied_run)
    path = copied_run / "checkpoints/final.safetensors"
    state = {name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}
    save_file(state, path)
    with pytest.raises(ExportError, match="the run's record says accuracy 0"):
        export(copied_run, "dense", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_that_are_cut_off_cost_one_line(copied_run, capsys):
    without_checksums(copied_run)
    masks = copied_run / "masks.safetensors"
    masks.write_bytes(masks.read_bytes()[:-3])
    code, out = said(capsys, copied_run, "--format", "dense")
    assert (code, out.err.count("\n")) == (2, 1), out.err
    assert f"'{masks}' can't be read: " in out.err


@pytest.mark.parametrize("record", ["{", "[]", '{"status": "finished"}'])
def test_records_that_are_broken_cost_one_line(copied_run, capsys, record):
    (copied_run / "results.json").write_text(record)
    code, out = said(capsys, copied_run, "--format", "dense")
    assert (code, out.err.count("\n")) == (2, 1)
    assert f"{copied_run / 'results.json'}'" in out.err


@pytest.mark.parametrize("kind", ["file", "module", "module of a package"])
@pytest.mark.parametrize("command", ["export", "measure", "measure an export"])
def test_code_that_a_record_names_is_run_only_when_asked_for(
    copied_run, tmp_path, capsys, command, kind
):
    started = tmp_path / "started"
    (started / "own_package").mkdir(parents=True)
    text = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    plugin, file = {
        "file": ("own.py", started / "own.py"),
        "module": (f"own_{command[0]}_module", started / f"own_{command[0]}_module.py"),
        "module of a package": ("own_package.inner", started / "own_package/inner.py"),
    }[kind]
    (started / "own_package/__init__.py").write_text(text)
    file.write_text(text)
    folder, name = copied_run, "results.json"
    if command == "measure an export":
        folder, name = export(copied_run, "dense", output=tmp_path / "out")[1], "export.json"
    record = json.loads((folder / name).read_text())
    record["config"]["plugins"], record["directory"] = [plugin], str(started)
    (folder / name).write_text(json.dumps(record))
    if command == "export":
        code = main([str(folder), "--format", "dense"])
    else:
        code = measure([str(folder), "--repeats", "2"])
    # The first import of torch's profiler has a line of its own to say.
    *_, errors = capsys.readouterr().err.splitlines()
    assert code == 2
    assert errors.startswith("error: plugins: the record names code, which is not run by default: ")
    assert f"{file} (SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()})" in errors
    assert "--plugins" in errors
    assert not (tmp_path / "ran").exists()
    assert str(started) not in sys.path


def test_code_that_is_trusted_is_run(copied_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = tmp_path / "own.py"
    own.write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    path = copied_run / "results.json"
    record = json.loads(path.read_text())
    record["config"]["plugins"] = [str(own)]
    path.write_text(json.dumps(record))
    restore(copied_run, trust_plugins=True)
    assert (tmp_path / "ran").exists()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="uv sync --extra onnx"):
        check_format("onnx")
    check_format("dense")


def test_other_classes_than_the_checkpoint_s_are_refused(finished_run, tmp_path):
    folder = Path(shutil.copytree(finished_run("unstructured"), tmp_path / "run"))
    without_checksums(folder)
    state = load_file(folder / "checkpoints/final.safetensors")
    state["heads.head.weight"] = state["heads.head.weight"][:7].clone()
    state["heads.head.bias"] = state["heads.head.bias"][:7].clone()
    save_file(state, folder / "checkpoints/final.safetensors")
    with pytest.raises(ConfigError, match="does not fit the data"):
        restore(folder)


# transformers


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A run of a tiny BERT on the sample of SST-2."""
    import re

    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    place = tmp_path_factory.mktemp("bert")
    data = Path(__file__).parent / "data/glue"
    text = (data / "SST-2/train.tsv").read_text() + (data / "SST-2/dev.tsv").read_text()
    words = sorted(set(re.findall(r"[a-z]+|[^\sa-z]", text.lower())))
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    ).save_pretrained(place / "model")
    config = transformers.BertConfig(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(place / "model")
    run_experiment(
        composed(
            f"model.name={place / 'model'}", "model=minilm", f"model.name={place / 'model'}",
            "dataset=glue/sst2", f"dataset.data_dir={data}", f"dataset.cache_dir={place}",
            "dataset.max_length=16", "trainer.batch_size=2", "trainer.max_steps=4",
            "tracker.mode=disabled", "pruner=magnitude_dyn", "sparsity=0.5",
            "pruner.pattern=rows", "pruner.include=['*intermediate*']", "threads=1",
        ),
        place / "run",
        LocalRecord(),
    )  # fmt: skip
    return place / "run"


def test_dense_loads_by_from_pretrained(bert, tmp_path):
    import transformers

    facts, folder = export(bert, "dense", output=tmp_path / "dense")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert bits(model.state_dict()) == bits(restore(bert).model.state_dict())
    assert tokenizer("good film")["input_ids"][0] == tokenizer.cls_token_id
    assert facts["comparison"]["difference"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("format", ["sparse", "small", "onnx"])
def test_other_formats_of_a_transformer(bert, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    facts, folder = export(bert, format, output=tmp_path / "out")
    assert facts["comparison"]["difference"] < 1e-5
    if format == "small":
        assert [(p["unit"], p["before"], p["after"]) for p in facts["shrunk"]]
        after = sum(p["after"] for p in facts["shrunk"])
        assert after == 24  # half of the neurons of two layers
    assert load(folder).data.text is not None
