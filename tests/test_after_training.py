"""Language models pruned as they are: texts, calibration, perplexity, the saved folder."""

import gzip
import json
import math
import random
import shutil
import subprocess
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from preloaded import python
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_conf import composed
from test_families import FAMILIES
from test_families import model_of as model_of_family
from torch import nn
from torch.nn import functional

from seven_exp.config import ConfigError, RunConfig
from seven_exp.datasets import build_data
from seven_exp.datasets.calibration import load_calibration
from seven_exp.datasets.corpora import CORPORA, read_rows
from seven_exp.export.exporting import export
from seven_exp.export.exporting import load as load_export
from seven_exp.export.formats import ExportError
from seven_exp.files.joining import join_tensors
from seven_exp.models.hub_models import fitting_config
from seven_exp.pruning import create_pruner
from seven_exp.pruning.criteria.wanda import Wanda
from seven_exp.pruning.layerwise import inference, side_by_side
from seven_exp.pruning.structure import blocks_of
from seven_exp.runs import in_turn, load_masks, run_hash
from seven_exp.runs.check import check
from seven_exp.runs.identity import run_identity
from seven_exp.runs.ledger import Ledger
from seven_exp.runs.restore import restore
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord

ROOT = Path(__file__).parent.parent
WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["<unk>", "<s>", "</s>"]


def sentences(count: int, length: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(count)]


def save_tokenizer(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # As Llama's: a token at the start of each text.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama with its tokenizer, saved in several shards."""
    import transformers

    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, bos_token_id=1,
        eos_token_id=2, pad_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="6KB")
    save_tokenizer(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with small copies of WikiText-2 and C4, in their own formats, and a text file."""
    folder = tmp_path_factory.mktemp("texts")
    for split, seed in (("train", 1), ("test", 2)):
        lines = [f" {line} \n" for line in sentences(12, 20, seed)]
        lines.insert(3, " \n")
        (folder / f"wiki.{split}.raw").write_text("".join(lines))
    for name, seed in (("train.00000-of-01024", 3), ("validation.00000-of-00008", 4)):
        with gzip.open(folder / f"c4-{name}.json.gz", "wt") as file:
            for i, text in enumerate([*sentences(10, 60, seed), *sentences(10, 9, seed + 9)]):
                file.write(json.dumps({"text": text, "url": str(i)}) + "\n")
    (folder / "own.txt").write_text("\n".join(sentences(10, 30, 5)))
    (folder / "own").mkdir()
    for split, seed in (("train", 6), ("test", 5)):
        (folder / "own" / f"{split}.txt").write_text("\n".join(sentences(10, 30, seed)))
    return folder


def tokenizer_of(folder):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def model_of(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def config_of(llama, texts, tmp_path, *overrides):
    return composed(
        "model=hf", f"model.name={llama}", "dataset=lm/wikitext2", f"dataset.data_dir={texts}",
        "dataset.max_length=16", "calibration=c4", f"calibration.data_dir={texts}",
        "calibration.samples=6", "calibration.length=16", "trainer.max_steps=0",
        "trainer.batch_size=1", "pruner=wanda", "sparsity=0.5", "tracker.mode=disabled",
        "device=cpu", f"cache_dir={tmp_path / 'cache'}", *overrides,
    )  # fmt: skip


def run(config, folder):
    check(config)
    return run_experiment(config, folder, LocalRecord())


def published_perplexity(model, ids, length):
    """The evaluation of the papers: exp of the mean of the blocks' mean losses."""
    blocks = len(ids) // length
    losses = []
    with torch.no_grad():
        for i in range(blocks):
            block = torch.tensor([ids[i * length : (i + 1) * length]])
            logits = model(block).logits[0, :-1].double()
            losses.append(functional.cross_entropy(logits, block[0, 1:]).item() * length)
    return math.exp(sum(losses) / (blocks * length))


# Texts


def test_texts_of_one_s_own_with_another_encoding_or_line_ends(tmp_path, caplog):
    text = tmp_path / "text.txt"
    text.write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"calibration\.data_dir: .*text\.txt is not UTF-8"):
        read_rows("calibration.data_dir", text)
    text.write_bytes(b"one\ntwo\n")
    assert read_rows("x", text) == ["one\ntwo\n"]
    assert not caplog.records
    text.write_bytes(b"one\r\ntwo\r\n")
    assert read_rows("x", text) == ["one\r\ntwo\r\n"]
    assert "Windows line ends" in caplog.text


def test_wikitexts_own_file_has_the_rows_of_the_hubs_copy(texts):
    rows = read_rows("x", texts / "wiki.test.raw")
    lines = sentences(12, 20, 2)
    assert rows == [f" {line} \n" for line in lines[:3]] + [""] + [f" {x} \n" for x in lines[3:]]


def test_parquet_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [" = Title = \n", "", " a b \n"]
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "x.parquet")
    assert read_rows("x", tmp_path / "x.parquet") == rows


def test_rows_without_text_are_named(tmp_path):
    """Rows of nothing were the word None in Parquet, and a traceback elsewhere."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "x.parquet")
    rows = [json.dumps({"text": text}).encode() for text in ("a", None)]
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b"\n".join(rows)))
    for name in ("x.parquet", "x.json.gz"):
        with pytest.raises(ValueError, match=f"key: .*{name}: row 2 holds no text"):
            read_rows("key", tmp_path / name)


def test_a_corpus_in_another_encoding_is_named(tmp_path):
    (tmp_path / "x.json.gz").write_bytes(gzip.compress('{"text": "\xe9"}'.encode("latin-1")))
    with pytest.raises(ValueError, match=r"key: .*x.json.gz can't be read as texts"):
        read_rows("key", tmp_path / "x.json.gz")


@pytest.mark.parametrize(
    ("name", "file", "joiner"),
    [
        ("wikitext2", "wiki.test.raw", "\n\n"),
        ("c4", "c4-validation.00000-of-00008.json.gz", " "),
        ("text_file", "own.txt", ""),
        ("text_file", "own/test.txt", ""),
    ],
)
def test_evaluation_reads_one_text_in_full_blocks(llama, texts, tmp_path, name, file, joiner):
    place = texts / (file.removesuffix("/test.txt") if name == "text_file" else "")
    data = build_data(
        f"lm/{name}", batch_size=2, seed=0, data_dir=str(place), tokenizer=str(llama),
        max_length=16, cache_dir=str(tmp_path),
    )  # fmt: skip
    ids = tokenizer_of(llama)(joiner.join(read_rows("x", texts / file)))["input_ids"]
    assert ids[0] == 1
    got = torch.cat([targets for _, targets in data.test.epoch(0)])
    assert got.flatten().tolist() == ids[: len(ids) // 16 * 16]


def test_training_reads_the_training_text_alone(llama, texts, tmp_path):
    data = build_data(
        "lm/text_file", batch_size=2, seed=0, data_dir=str(texts / "own"), tokenizer=str(llama),
        max_length=16, cache_dir=str(tmp_path),
    )  # fmt: skip
    ids = tokenizer_of(llama)((texts / "own" / "train.txt").read_text())["input_ids"]
    got = torch.cat([targets for _, targets in data.train.epoch(0)])
    blocks = {tuple(ids[i : i + 16]) for i in range(0, len(ids) - 15, 16)}
    assert len(got) == len(blocks) // 2 * 2
    assert {tuple(row) for row in got.tolist()} <= blocks


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["wanda", "magnitude"])
def test_the_training_text_is_not_read_where_nothing_trains(llama, texts, tmp_path, pruner):
    """C4's has 356,317 documents, which a run would download and tokenise only to count them."""
    (tmp_path / "texts").mkdir()
    shutil.copy(texts / "wiki.test.raw", tmp_path / "texts")
    place = f"dataset.data_dir={tmp_path / 'texts'}"
    record = run(config_of(llama, texts, tmp_path, place, f"pruner={pruner}"), tmp_path / "run")
    assert record["train_examples"] is None


def test_only_the_first_1100_rows_and_256_blocks_of_c4_are_evaluated(llama, tmp_path):
    rows = [f"{WORDS[i % 40]} {WORDS[i // 40 % 40]}" for i in range(1200)]
    with gzip.open(tmp_path / "c4-validation.00000-of-00008.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": row}) + "\n" for row in rows)
    given = {"batch_size": 1, "seed": 0, "data_dir": str(tmp_path), "tokenizer": str(llama)}
    ids = tokenizer_of(llama)(" ".join(rows[:1100]))["input_ids"]
    for length, blocks in ((4, 256), (16, 137)):
        data = build_data("lm/c4", max_length=length, cache_dir=str(tmp_path), **given)
        got = torch.cat([targets for _, targets in data.test.epoch(0)])
        assert got.flatten().tolist() == ids[: blocks * length]


def drawn(name, llama, texts, tmp_path, **changed):
    given = {"samples": 7, "length": 16, "seed": 3, "data_dir": str(texts)}
    ids, departures = load_calibration(
        name, **given | {"tokenizer": str(llama), "cache_dir": str(tmp_path)} | changed
    )
    return ids.tolist(), departures


def test_calibration_draws_random_windows_of_random_documents(llama, texts, tmp_path):
    words, state = tokenizer_of(llama), random.Random(3)
    rows = read_rows("x", texts / "c4-train.00000-of-01024.json.gz")
    expected = []
    while len(expected) < 7:
        ids = words(rows[state.randint(0, len(rows) - 1)])["input_ids"]
        if len(ids) > 16:
            start = state.randint(0, len(ids) - 17)
            expected.append(ids[start : start + 16])
    assert drawn("c4", llama, texts, tmp_path)[0] == expected
    assert drawn("c4", llama, texts, tmp_path, seed=4)[0] != expected


def test_calibration_draws_windows_of_a_whole_text(llama, texts, tmp_path):
    words, state = tokenizer_of(llama), random.Random(3)
    ids = words(" ".join(read_rows("x", texts / "wiki.train.raw")))["input_ids"]
    starts = [state.randint(0, len(ids) - 17) for _ in range(7)]
    expected = [ids[start : start + 16] for start in starts]
    assert drawn("wikitext2", llama, texts, tmp_path)[0] == expected


def test_published_calibration_departs_in_nothing(llama, tmp_path, monkeypatch):
    with gzip.open(tmp_path / "c4-train.00000-of-01024.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": " ".join(WORDS * 60)}) + "\n" for _ in range(3))
    monkeypatch.setitem(CORPORA["c4"].rows, "train", 3)
    _, none = drawn("c4", llama, tmp_path, tmp_path, samples=128, length=2048)
    assert none == []
    _, some = drawn("c4", llama, tmp_path, tmp_path, samples=2, length=64)
    assert some == ["64 tokens a sequence, not 2,048", "2 sequences, not 128"]


# Runs


@pytest.fixture(scope="module")
def pruned(llama, texts, tmp_path_factory):
    """A run of Wanda, and its record."""
    folder = tmp_path_factory.mktemp("wanda")
    return folder / "run", run(config_of(llama, texts, folder), folder / "run")


@pytest.mark.slow
def test_perplexity_is_that_of_the_published_evaluation(llama, texts, pruned):
    folder, record = pruned
    text = "\n\n".join(read_rows("x", texts / "wiki.test.raw"))
    expected = published_perplexity(
        model_of(folder / "model"), tokenizer_of(llama)(text)["input_ids"], 16
    )
    assert record["metrics"]["perplexity"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_saved_folder_loads_with_exact_zeros_and_its_tokenizer(llama, pruned):
    folder, record = pruned
    model, dense = model_of(folder / "model").state_dict(), model_of(llama).state_dict()
    masks = load_masks(folder / "masks.safetensors")
    assert len(masks) == 3 * 7
    for name, value in dense.items():
        kept = masks.get(name, torch.tensor(True))
        assert torch.equal(model[name], torch.where(kept, value, 0.0)), name
    for name, mask in masks.items():
        # half of each row
        assert mask.sum(1).unique().tolist() == [mask.shape[1] // 2], name
    assert tokenizer_of(folder / "model")("w3 w5")["input_ids"] == [1, 6, 8]
    assert record["params_nonzero"] == record["params_prunable"] // 2
    assert set(record["sha256"]) > {"masks.safetensors"}
    assert not (folder / "checkpoints/final.safetensors").exists()


@pytest.fixture
def chat(llama, tmp_path):
    """The tiny Llama as a model for chats, which two tokens end; none is for padding."""
    folder = tmp_path / "chat"
    shutil.copytree(llama, folder)
    for name, more in (("config", {}), ("generation_config", {"temperature": 0.6})):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 5], **more}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["pruner=short_gpt", "sparsity=0.34"]])
def test_a_saved_model_generates_like_its_source(chat, texts, tmp_path, overrides):
    run(config_of(chat, texts, tmp_path, *overrides), tmp_path / "run")
    folders = [tmp_path / "run/model"]
    if overrides:
        folders.append(export(tmp_path / "run", "small")[1])
    for folder in folders:
        model = model_of(folder)
        assert model.generation_config.eos_token_id == model.config.eos_token_id == [2, 5]
        assert model.generation_config.temperature == 0.6
        assert model.config.pad_token_id is None


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_a_tied_weight_may_be_stored_twice(texts, tmp_path, same):
    """transformers ties two weights of a file only if they are equal."""
    import transformers

    folder = tmp_path / "model"
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    state = tensors_of(folder)
    words = state["model.embed_tokens.weight"]
    state["lm_head.weight"] = words.clone() if same else 2 * words
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = config_of(folder, texts, tmp_path)
    one, two = run(config, tmp_path / "one"), in_memory(config, tmp_path / "two")
    assert {name: one[name] for name in FACTS} == {name: two[name] for name in FACTS}
    read = [model_of(tmp_path / name / "model").state_dict() for name in ("one", "two")]
    assert same_tensors(*read)
    assert torch.equal(read[0]["lm_head.weight"], words) == same
    assert same_tensors(restore(tmp_path / "one").model.state_dict(), read[0])


def test_masks_are_those_of_the_core_on_the_drawn_sequences(llama, texts, pruned, tmp_path):
    folder, _ = pruned
    sequences, _ = drawn("c4", llama, texts, tmp_path, samples=6, seed=0)
    model = model_of(llama)
    pruner = create_pruner("wanda", model, sparsity=0.5)
    pruner.prune([torch.tensor([ids]) for ids in sequences], lambda m, ids: m(ids).logits.sum())
    masks = load_masks(folder / "masks.safetensors")
    assert all(torch.equal(masks[name], mask) for name, mask in pruner.masks.items())


def test_wandas_first_layer_by_hand(llama, texts, pruned, tmp_path):
    """|W| times the norm of the inputs over all drawn tokens, best half of each row."""
    folder, _ = pruned
    sequences, _ = drawn("c4", llama, texts, tmp_path, samples=6, seed=0)
    state = {name: value.double().numpy() for name, value in model_of(llama).state_dict().items()}
    rows = state["model.embed_tokens.weight"][np.concatenate(sequences)]
    normed = rows / np.sqrt((rows**2).mean(1, keepdims=True) + 1e-6)
    inputs = normed * state["model.layers.0.input_layernorm.weight"]
    name = "model.layers.0.self_attn.q_proj.weight"
    scores = np.abs(state[name]) * np.sqrt((inputs**2).sum(0))
    best = np.argsort(-scores, axis=1)[:, :8]
    expected = np.zeros_like(scores, dtype=bool)
    np.put_along_axis(expected, best, values=True, axis=1)
    assert np.array_equal(load_masks(folder / "masks.safetensors")[name].numpy(), expected)


def test_a_run_can_be_restored(pruned):
    folder, _ = pruned
    restored = restore(folder)
    state = model_of(folder / "model").state_dict()
    assert all(torch.equal(state[k], v) for k, v in restored.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["sparsegpt", "magnitude", "seven_pre", "dense"])
def test_other_pruners_prune_the_same_model(llama, texts, tmp_path, pruner):
    overrides = [f"pruner={pruner}", *(["pruner.rounds=2"] if pruner == "seven_pre" else [])]
    record = run(config_of(llama, texts, tmp_path, *overrides), tmp_path / "run")
    zeros = 0 if pruner == "dense" else record["params_prunable"] // 2
    assert record["params_prunable"] - record["params_nonzero"] == zeros
    state = model_of(tmp_path / "run/model").state_dict()
    assert sum(int((value == 0).sum()) for value in state.values()) >= zeros


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruner", "overrides", "units"),
    [
        ("flap", ["model.biases=true", "model.dtype=bfloat16"], {"heads", "neurons"}),
        ("llm_pruner", [], {"heads", "neurons"}),
        ("short_gpt", ["sparsity=0.33"], {"blocks"}),
    ],
)
def test_structured_methods_leave_a_really_smaller_model(
    llama, texts, tmp_path, pruner, overrides, units
):
    config = config_of(llama, texts, tmp_path, f"pruner={pruner}", *overrides)
    record = run(config, tmp_path / "run")
    facts, folder = export(tmp_path / "run", "small")
    assert {part["unit"] for part in facts["shrunk"]} == units
    assert facts["params"] < record["params_total"]
    masked, ids = model_of(tmp_path / "run/model"), torch.arange(12).unsqueeze(0)
    biases = {n: bool(b.any()) for n, b in masked.named_parameters() if n.endswith("bias")}
    # What reads the pruned units gets their means; the other new biases stay zero.
    readers = ("o_proj.bias", "down_proj.bias")
    assert len(biases) == (3 * 7 if pruner == "flap" else 0)
    assert not any(moved for n, moved in biases.items() if not n.endswith(readers))
    assert all(moved for n, moved in biases.items() if n.endswith("down_proj.bias"))
    # transformers' own loader knows fewer blocks, but not widths that differ among them.
    small = model_of(folder) if pruner == "short_gpt" else load_export(folder).model
    assert len(small.model.layers) == (2 if pruner == "short_gpt" else 3)
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, masked(ids).logits, rtol=0, atol=1e-5)


def test_biases_are_refused_where_a_model_has_no_place_for_them(tmp_path):
    import transformers

    transformers.MistralConfig(vocab_size=9).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.biases is true: transformers' mistral"):
        fitting_config(str(tmp_path), "language_modelling", 9, 8, biases=True)


@pytest.mark.slow
def test_other_figures_than_the_published_are_labelled(pruned, capsys):
    from seven_exp.compare.comparison import compare

    folder, record = pruned
    assert record["departures"] == [
        "13 rows of text, not 4,358 (test-00000-of-00001.parquet)",
        "16 tokens a sequence, not 2,048",
        "calibration: 20 rows of text, not 356,317 (c4-train.00000-of-01024.json.gz)",
        "calibration: 16 tokens a sequence, not 2,048",
        "calibration: 6 sequences, not 128",
    ]
    compare([folder])
    shown = capsys.readouterr().out
    assert "‡ not of the published protocol: 13 rows of text" in shown
    assert "wanda" in shown


def test_the_hash_covers_what_a_run_reads(llama, texts, tmp_path):
    configs = {
        pruner: config_of(llama, texts, tmp_path, f"pruner={pruner}")
        for pruner in ("wanda", "dense", "magnitude")
    }

    def of(pruner="wanda", section="calibration", **changed):
        values = configs[pruner].model_dump()
        return run_hash(RunConfig.model_validate(values | {section: values[section] | changed}))

    assert len({of(), of(samples=7), of(length=8), of(name="wikitext2")}) == 4
    assert of() == of(section="pruner", batches_per_round=3)
    for pruner in ("dense", "magnitude"):
        assert of(pruner) == of(pruner, samples=7)
    copy = shutil.copytree(texts, tmp_path / "copy")
    assert of() == of(data_dir=str(copy))


@pytest.mark.slow
def test_the_record_tells_own_texts_for_calibration_apart(llama, texts, tmp_path):
    own = ["calibration=text_file", f"calibration.data_dir={texts / 'own'}"]
    one = run(config_of(llama, texts, tmp_path, *own), tmp_path / "one")
    shutil.copytree(texts / "own", tmp_path / "more")
    (tmp_path / "more/train.txt").write_text("\n".join(sentences(11, 30, 7)))
    own[1] = f"calibration.data_dir={tmp_path / 'more'}"
    two = run(config_of(llama, texts, tmp_path, *own), tmp_path / "two")
    places = {"model.name", "calibration.data_dir"}
    assert one["other_files"].keys() == two["other_files"].keys() == places
    assert one["other_files"] != two["other_files"]
    # a copy of a published text is that text
    three = run(config_of(llama, texts, tmp_path), tmp_path / "three")
    assert three["other_files"] == {"model.name": one["other_files"]["model.name"]}


def test_no_calibration_is_no_part_of_the_hash():
    config = composed("pruner=magnitude", "tracker.mode=disabled")
    assert config.calibration is None
    assert "calibration" not in run_identity(config)


# One block at a time


def in_memory(config, folder):
    """The same run with the whole model in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_turn, "opened", lambda *_: None)
        return run(config, folder)


def tensors_of(folder):
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def same_tensors(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


FACTS = (
    *("run_hash", "params_total", "params_prunable", "params_nonzero", "layers", "sparsity"),
    *("zeros_total", "params_zero", "flops_dense", "flops_sparse", "metrics", "best", "departures"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["pruner=sparsegpt", "model.dtype=bfloat16"],
        ["pruner.pattern=2:4", "pruner.scope=per_layer", "calibration.batch_size=4"],
        ["pruner=wanda_pp"],
        ["pruner.exclude=['*layers.0*','*layers.2*']"],
        ["pruner=magnitude", "pruner.scope=per_layer", "pruner.sparsities={*q_proj*:0.7}"],
        ["pruner=magnitude_pre", "pruner.scope=per_row", "pruner.pattern=2:4"],
        ["pruner=dense"],
    ],
)
def test_blocks_in_turn_give_the_run_in_memory(llama, texts, tmp_path, overrides):
    config = config_of(llama, texts, tmp_path, *overrides)
    assert in_turn.allowed(config)
    one, two = run(config, tmp_path / "one"), in_memory(config, tmp_path / "two")
    for name in FACTS:
        assert one[name] == two[name], name
    assert one["sha256"]["start"] == two["sha256"]["start"]
    masks = [load_masks(tmp_path / name / "masks.safetensors") for name in ("one", "two")]
    assert same_tensors(*masks)
    assert same_tensors(*(tensors_of(tmp_path / name / "model") for name in ("one", "two")))
    assert len(list((tmp_path / "one/model").glob("*.safetensors"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        *("OPT", "GPT2", "Gemma", "Phi", "GPTNeoX", "Bloom", "Falcon", "Mamba"),
        *("Qwen3", "Mistral", "Mixtral", "Olmoe", "Qwen2Moe", "GptOss", "DeepseekV3"),
    ],
)
def test_families_in_turn_give_the_run_in_memory(llama, texts, tmp_path, family, monkeypatch):
    folder, turns, opened = tmp_path / "model", [], in_turn.opened
    model_of_family(family).save_pretrained(folder, max_shard_size="8KB")
    save_tokenizer(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    monkeypatch.setattr(in_turn, "opened", lambda *a: turns.append(opened(*a)) or turns[0])
    config = config_of(folder, texts, tmp_path, "pruner=sparsegpt")
    one, two = run(config, tmp_path / "one"), in_memory(config, tmp_path / "two")
    # transformers converts names or experts of these checkpoints, so all is read at once
    converted = ("GPTNeoX", "Mixtral", "Olmoe", "Qwen2Moe", "DeepseekV3")
    assert (turns[0] is None) == (family in converted)
    assert {name: one[name] for name in FACTS} == {name: two[name] for name in FACTS}
    assert same_tensors(*(load_masks(tmp_path / n / "masks.safetensors") for n in ("one", "two")))
    models = [model_of(tmp_path / name / "model") for name in ("one", "two")]
    assert same_tensors(*(model.state_dict() for model in models))
    masks, read = load_masks(tmp_path / "one/masks.safetensors"), dict(models[0].named_parameters())
    assert sum(mask.numel() for mask in masks.values()) == one["params_prunable"]
    assert all(not read[name][~mask].any() for name, mask in masks.items())
    assert same_tensors(restore(tmp_path / "one").model.state_dict(), models[0].state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("format", "overrides"), [("dense", []), ("small", ["pruner=short_gpt"])])
def test_a_mixture_of_experts_is_exported(llama, texts, tmp_path, format, overrides):
    folder = tmp_path / "model"
    model_of_family("Mixtral").save_pretrained(folder)
    save_tokenizer(folder)
    record = run(config_of(folder, texts, tmp_path, *overrides), tmp_path / "run")
    facts, export_folder = export(tmp_path / "run", format)
    assert facts["comparison"]["value"] == pytest.approx(record["metrics"]["perplexity"], rel=1e-5)
    blocks = len(model_of(export_folder).model.layers)
    assert blocks == len(load_export(export_folder).model.model.layers)
    assert blocks == (1 if format == "small" else 2)


@pytest.mark.slow
def test_a_2_of_4_export_refuses_weights_that_are_stored_transposed(llama, texts, tmp_path):
    folder = tmp_path / "model"
    model_of_family("GPT2").save_pretrained(folder)
    save_tokenizer(folder)
    run(config_of(folder, texts, tmp_path, "pruner.pattern=2:4"), tmp_path / "run")
    with pytest.raises(ExportError, match=r"c_attn.weight has one for each input"):
        export(tmp_path / "run", "2:4")


class Killed(BaseException):
    """Stands for a signal that kills the process."""


def killed_at(moment):
    """In place of ``InTurn.write``; the block, or -1 for the rest, is not written any more."""
    write = in_turn.InTurn.write

    def killed(self, folder, number, names):
        if number == moment:
            raise Killed
        write(self, folder, number, names)

    return killed


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["block", "rest", "evaluation"])
def test_a_killed_run_goes_on_from_its_last_finished_block(
    llama, texts, tmp_path, pruned, monkeypatch, moment
):
    config, solved = config_of(llama, texts, tmp_path), []
    solve = Wanda.solve

    def counted(self, *arguments):
        solved.append(1)
        return solve(self, *arguments)

    monkeypatch.setattr(Wanda, "solve", counted)
    with monkeypatch.context() as patch:
        patch.setattr(in_turn.InTurn, "write", killed_at({"block": 1, "rest": -1}.get(moment)))
        if moment == "evaluation":
            patch.setattr(in_turn, "_evaluate", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(config, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
    first = len(solved)
    record = run(config, tmp_path / "run")
    # seven weights a block; the block in which it was killed is solved again
    assert (first, len(solved) - first) == {"block": (14, 14)}.get(moment, (21, 0))
    _, whole = pruned
    assert {name: record[name] for name in FACTS} == {name: whole[name] for name in FACTS}
    assert record["sha256"] == whole["sha256"]
    assert not (tmp_path / "run/model.partial").exists()


def files_of(folder):
    """The content of the masks and of all files of the model, by name."""
    paths = [folder / "masks.safetensors", *(folder / "model").rglob("*")]
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.slow
def test_a_run_killed_while_it_writes_a_file_goes_on(llama, texts, tmp_path, pruned, monkeypatch):
    config, folder = config_of(llama, texts, tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(in_turn.InTurn, "write", killed_at(1))
        with pytest.raises(Killed):
            run(config, folder)
    for place in ("model.partial", "model.partial/masks"):
        (folder / place / ".model-00003-of-00004.1.partial.safetensors").touch()
    run(config, folder)
    assert files_of(folder) == files_of(pruned[0])


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "call"), [(Path, "rename"), (shutil, "rmtree")])
def test_a_run_killed_while_it_completes_the_folder_goes_on(
    llama, texts, tmp_path, pruned, monkeypatch, owner, call
):
    config, folder = config_of(llama, texts, tmp_path), tmp_path / "run"
    real = getattr(owner, call)

    def killed(path, *rest, **options):
        if path.name in ("model.partial", "masks"):
            raise Killed
        return real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, killed)
        with pytest.raises(Killed):
            run(config, folder)
    run(config, folder)
    assert files_of(folder) == files_of(pruned[0])


@pytest.mark.slow
def test_a_killed_run_of_weights_alone_goes_on(llama, texts, tmp_path, monkeypatch):
    config = config_of(llama, texts, tmp_path, "pruner=magnitude", "pruner.scope=per_layer")
    whole = in_memory(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(in_turn.InTurn, "write", killed_at(2))
        with pytest.raises(Killed):
            run(config, tmp_path / "run")
    record = run(config, tmp_path / "run")
    assert {name: record[name] for name in FACTS} == {name: whole[name] for name in FACTS}
    assert same_tensors(*(tensors_of(tmp_path / name / "model") for name in ("run", "whole")))


@pytest.mark.slow
def test_weights_before_the_blocks_are_in_the_masks_once(texts, tmp_path, monkeypatch):
    """OPT's projections of the embeddings lie outside all blocks; one is read before the first."""
    import transformers

    sizes, _ = FAMILIES["OPT"]
    config = transformers.OPTConfig(**{**sizes, "word_embed_proj_dim": 8})
    folder = tmp_path / "model"
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)

    config = config_of(folder, texts, tmp_path, "pruner.exclude_defaults=false")
    with monkeypatch.context() as patch:
        patch.setattr(in_turn.InTurn, "write", killed_at(1))
        with pytest.raises(Killed):
            run(config, tmp_path / "one")
    assert (tmp_path / "one/model.partial").is_dir()
    one, two = run(config, tmp_path / "one"), in_memory(config, tmp_path / "two")
    assert {name: one[name] for name in FACTS} == {name: two[name] for name in FACTS}
    masks = [load_masks(tmp_path / n / "masks.safetensors") for n in ("one", "two")]
    assert same_tensors(*masks)
    before = "model.decoder.project_in.weight"
    state = model_of(tmp_path / "one/model").state_dict()
    assert not masks[0][before].all()
    assert torch.equal(state[before] != 0, masks[0][before])


def test_a_run_that_was_begun_is_found_again(tmp_path):
    ledger = Ledger(tmp_path)
    home = ledger.home("abc", tmp_path / "one", afresh=False)
    (home / "model.partial").mkdir()
    assert ledger.home("abc", tmp_path / "two", afresh=False) == home
    assert ledger.home("abc", tmp_path / "one", afresh=True) == home
    assert not (home / "model.partial").exists()


def test_a_folder_that_a_killed_run_left_half_written_is_removed(tmp_path):
    ledger = Ledger(tmp_path)
    home = ledger.home("abc", tmp_path / "one", afresh=False)
    (home / ".model.1.partial").mkdir()
    (home / ".model.1.partial" / "config.json").touch()
    assert ledger.home("abc", tmp_path / "one", afresh=False) == home
    assert not (home / ".model.1.partial").exists()


@pytest.mark.slow
def test_only_one_block_has_its_weights(llama, texts, tmp_path, monkeypatch):
    most = []
    see = Wanda.see

    def watched(self, *arguments):
        model = turns[0].model
        present = [not next(block.parameters()).is_meta for block in turns[0].blocks]
        most.append(sum(present))
        assert not model.lm_head.weight.is_meta
        return see(self, *arguments)

    turns, opened = [], in_turn.opened
    monkeypatch.setattr(in_turn, "opened", lambda *a: turns.append(opened(*a)) or turns[0])
    monkeypatch.setattr(Wanda, "see", watched)
    run(config_of(llama, texts, tmp_path), tmp_path / "run")
    assert set(most) == {1}
    assert all(p.is_meta for block in turns[0].blocks for p in block.parameters())


def test_sequences_share_equal_masks_and_nothing_else():
    """gpt-oss's masks are of (length, length), for each sequence."""
    model, places, found = model_of_family("GptOss"), [], {}
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 6], [7, 8, 9, 3]])
    block = blocks_of(model)[1]
    forward = block.forward

    def watched(hidden, **options):
        places.append((hidden.data_ptr(), options["attention_mask"].data_ptr()))
        return forward(hidden, **options)

    def logits(i):
        found[i] = model(ids[i : i + 1]).logits

    with inference(model, [torch.device("cpu")]):
        expected = [model(row[None]).logits for row in ids]
        block.forward = watched
        side_by_side(blocks_of(model), [partial(logits, i) for i in range(3)], nullcontext)
    hidden, masks = zip(*places, strict=True)
    assert (len(set(hidden)), len(set(masks))) == (3, 1)
    assert all(torch.equal(found[i], expected[i]) for i in range(3))


def test_a_block_that_changes_a_shared_mask_is_an_error():
    class Block(nn.Module):
        def forward(self, x, mask):
            return x + mask.add_(1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Block(), Block()])

        def forward(self, x):
            mask = torch.ones(2)
            for block in self.layers:
                x = block(x, mask)
            return x

    model, inputs = Model(), torch.rand(2, 2)
    with pytest.raises(RuntimeError, match="changes its mask or its positions in place"):
        side_by_side(list(model.layers), [partial(model, x) for x in inputs], nullcontext)


def test_a_model_trained_anew_in_its_folder_is_another(llama, texts, tmp_path):
    """Its files have the same names and sizes."""
    folder = shutil.copytree(llama, tmp_path / "model")
    config = config_of(folder, texts, tmp_path)
    before = run_hash(config)
    assert run_hash(config) == before == run_hash(config_of(llama, texts, tmp_path))
    for file in folder.glob("*.safetensors"):
        state = {name: tensor.flip(0) for name, tensor in load_file(file).items()}
        save_file(state, file, metadata={"format": "pt"})
    assert run_hash(config) != before


def test_files_are_joined_to_what_the_library_would_write(tmp_path):
    first = {"a": torch.arange(5), "b": torch.rand(3, 2)}
    second = {"c": torch.rand(7).bfloat16(), "d": torch.tensor([True, False])}
    save_file(first, tmp_path / "1.safetensors", metadata={"a": "x"})
    save_file(second, tmp_path / "2.safetensors", metadata={"c": "y"})
    parts = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    join_tensors(parts, tmp_path / "all.safetensors")
    assert same_tensors(load_file(tmp_path / "all.safetensors"), first | second)
    with safe_open(tmp_path / "all.safetensors", "pt") as file:
        assert file.metadata() == {"a": "x", "c": "y"}


# Mistakes


def changed(llama, folder, change):
    shutil.copytree(llama, folder)
    change(folder)
    return folder


def without_a_shard(folder):
    sorted(folder.glob("*.safetensors"))[2].unlink()


def cut_short(folder):
    file = sorted(folder.glob("*.safetensors"))[2]
    file.write_bytes(file.read_bytes()[:-9])


def index_of(folder):
    return folder / "model.safetensors.index.json"


def without_the_end_of_its_index(folder):
    index_of(folder).write_text(index_of(folder).read_text()[:50])


def with_a_weight_in_another_file(folder):
    index = json.loads(index_of(folder).read_text())
    own = index["weight_map"]["model.norm.weight"]
    others = (file for file in index["weight_map"].values() if file != own)
    index["weight_map"]["model.norm.weight"] = next(others)
    index_of(folder).write_text(json.dumps(index))


def with_another_layer_in_its_config(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 4
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))


def quantised(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def of_another_width(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_a_shard, r"model-00003-of-0000\d.safetensors is missing \(1 of"),
        (cut_short, "can't be read .* download it again"),
        (without_the_end_of_its_index, "index.json is broken: download the model again"),
        (
            with_a_weight_in_another_file,
            "holds no model.norm.weight, which model.safetensors.index",
        ),
        (with_another_layer_in_its_config, r"files have no model.layers.3.* \(9 weights\)"),
        (quantised, r"quantised \(gptq\) .* give the checkpoint that it was made from"),
        (of_another_width, "in shape .* but the model's has"),
    ],
)
def test_a_broken_model_is_one_line_and_nothing_is_written(llama, texts, tmp_path, change, words):
    folder = changed(llama, tmp_path / "model", change)
    with pytest.raises(ConfigError, match=words) as error:
        run(config_of(folder, texts, tmp_path), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


OWN = ["dataset=lm/text_file"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset.max_length=100"], "dataset.max_length is 100: .* at most 64 tokens"),
        (["dataset=lm/text_file", "dataset.data_dir=SHORT"], "3 tokens, less than one block of 16"),
        (["dataset.data_dir=EMPTY"], "holds no test-00000-of-00001.parquet or wiki.test.raw"),
        (["calibration.length=62"], "no row has more than calibration.length=62 tokens"),
        (["calibration.length=65"], "calibration.length is 65: .* at most 64 tokens"),
        (["calibration.name=c5"], "calibration.name is 'c5': did you mean 'c4'"),
        (["calibration=text_file", "calibration.data_dir=EMPTY"], "it holds no train.txt; give a"),
        ([*OWN, "dataset.data_dir=SHORT", "trainer.max_steps=2"], "nothing may be trained on it"),
        (["dataset.tokenizer=LARGER"], "knows 43 tokens and the tokenizer has 45"),
        (["model=vit_tiny", "dataset=digits"], "calibration is 'c4': it is for language models"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    llama, texts, tmp_path, overrides, words
):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "SHORT").write_text("w1 w2")
    tokenizer = tokenizer_of(llama)
    tokenizer.add_tokens(["x1", "x2"])
    tokenizer.save_pretrained(tmp_path / "LARGER")
    for name in ("EMPTY", "SHORT", "LARGER"):
        overrides = [word.replace(name, str(tmp_path / name)) for word in overrides]
    if "dataset=digits" in overrides:
        config = composed(*overrides, "calibration=c4", "pruner=wanda", "trainer.max_steps=0")
    else:
        config = config_of(llama, texts, tmp_path, *overrides)
    with pytest.raises(ConfigError, match=words) as error:
        run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("pruner", "fits"), [("snip", False), ("magnitude", True)])
def test_gradients_are_not_those_of_the_text_of_the_evaluation(llama, texts, pruner, fits):
    config = composed(
        "model=hf", f"model.name={llama}", "dataset=lm/text_file", "dataset.max_length=16",
        f"dataset.data_dir={texts / 'own.txt'}", "trainer.max_steps=0", f"pruner={pruner}",
    )  # fmt: skip
    with nullcontext() if fits else pytest.raises(ConfigError, match="may be trained on it"):
        check(config)


@pytest.mark.slow
def test_prune_from_the_command_line(llama, texts, tmp_path):
    command = [
        *(python(), "-m", "seven_exp", "prune", f"model.name={llama}", "sparsity=0.5"),
        *(f"dataset.data_dir={texts}", "dataset.max_length=16", f"calibration.data_dir={texts}"),
        *("calibration.samples=6", "calibration.length=16", "tracker=none", "device=cpu"),
        *(f"cache_dir={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/results.json").read_text())
    assert (record["pruner"], record["steps"]) == ("wanda", 0)
    assert "perplexity" in done.stdout
    mistaken = subprocess.run(
        [*command, f"calibration.data_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert mistaken.returncode == 2
    assert len(mistaken.stderr.splitlines()) == 1
