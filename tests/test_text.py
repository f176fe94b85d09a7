"""Text end to end: reading, tokens, batches, transformers' models, whole runs."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from preloaded import python
from test_conf import composed

from seven_exp import runs
from seven_exp.config import ConfigError
from seven_exp.datasets import build_data, download, glue, squad, wikitext
from seven_exp.datasets.tokens import TokenBatches, from_lists
from seven_exp.models import build_model
from seven_exp.pruning import PRUNERS, create_pruner
from seven_exp.pruning.layers import prunable_layers
from seven_exp.runs.build import blank_model, model_of
from seven_exp.runs.check import check
from seven_exp.runs.plan import Plan
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord
from seven_exp.training.compute import Compute

ROOT = Path(__file__).parent.parent
SAMPLES = Path(__file__).parent / "data"
CPU = torch.device("cpu")


def words():
    text = " ".join(p.read_text() for p in SAMPLES.rglob("*.*") if p.is_file())
    return sorted(set(re.findall(r"[a-z]+|[^\sa-z]", text.lower())))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Kind -> a tiny model of that kind with its tokenizer, as transformers saves them."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<end>"]
    vocab = {word: i for i, word in enumerate([*special, *words()])}
    made = {}
    size = {"vocab_size": len(vocab)}
    wide = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, **size}
    configs = {
        "bert": transformers.BertConfig(num_hidden_layers=2, **wide),
        "roberta": transformers.RobertaConfig(
            num_hidden_layers=1, max_position_embeddings=200, pad_token_id=0, **wide
        ),
        "distilbert": transformers.DistilBertConfig(
            dim=16, n_heads=2, n_layers=2, hidden_dim=24, **size
        ),
        "deberta-v2": transformers.DebertaV2Config(num_hidden_layers=1, **wide),
        "gpt2": transformers.GPT2Config(
            n_embd=16, n_head=2, n_layer=2, n_positions=512,
            bos_token_id=4, eos_token_id=4, **size,
        ),
        "vit": transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
            image_size=8, patch_size=4, num_channels=1,
        ),
    }  # fmt: skip
    for kind, config in configs.items():
        folder = tmp_path_factory.mktemp("hub") / kind
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        made[kind] = folder
        if kind == "vit":
            continue
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        names = {"unk_token": "[UNK]", "eos_token": "<end>"}
        if kind != "gpt2":
            names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
            names["sep_token"] = "[SEP]"
            tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
        fast.save_pretrained(folder)
    return made


def data_of(name, folder, tmp_path, **changed):
    arguments = {"data_dir": str(SAMPLES / "glue"), "max_length": 32}
    arguments |= {"tokenizer": str(folder), "cache_dir": str(tmp_path), **changed}
    return build_data(name, **{"batch_size": 4, "seed": 0, **arguments})


def tensors(batches, epoch=0):
    return [[*inputs.values(), targets] for inputs, targets in batches.epoch(epoch)]


def same(a, b):
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x, y)
        for one, two in zip(a, b, strict=True)
        for x, y in zip(one, two, strict=True)
    )


# Reading


@pytest.mark.parametrize("task", ["cola", "sst2", "mrpc", "stsb", "mnli"])
def test_official_layouts_are_read(task):
    spec = glue.TASKS[task]
    texts, labels = glue.read_tsv(SAMPLES / "glue" / spec.folder / "train.tsv", spec)
    assert len(texts) == len(spec.texts)
    assert all(len(column) == len(labels) for column in texts)
    assert len(set(labels)) > 1


def test_quotes_byte_order_mark_and_class_order():
    spec = glue.TASKS["mrpc"]
    texts, labels = glue.read_tsv(SAMPLES / "glue/MRPC/train.tsv", spec)
    assert texts[0][0] == 'The firm sold " ten shops on Monday .'
    assert labels == [1, 0, 1, 0]
    mnli = glue.read_tsv(SAMPLES / "glue/MNLI/dev_matched.tsv", glue.TASKS["mnli"])[1]
    assert mnli == [1, 0, 2]  # entailment, contradiction, neutral in alphabetical order
    assert glue.read_tsv(SAMPLES / "glue/STS-B/train.tsv", glue.TASKS["stsb"])[1][0] == 4.8


@pytest.mark.parametrize(
    ("task", "content", "words"),
    [
        ("sst2", b"text\tlabel\na\t1\n", "no column 'sentence'"),
        ("sst2", b"sentence\tlabel\na\t2\n", "line 2: label '2': it must be one of 0, 1"),
        ("sst2", b"sentence\tlabel\na\t1\nb\n", "line 3: 1 columns"),
        ("sst2", "sentence\tlabel\né\t1\n".encode("latin-1"), "is not UTF-8"),
        ("sst2", b"sentence\tlabel\n", "no examples"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\t5.5\n", "a number from 0 to 5"),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\tnan\n", "a number from 0 to 5"),
        ("cola", b"x\t1\n", "line 1: 2 columns"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path, task, content, words):
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        glue.read_tsv(tmp_path / "x.tsv", glue.TASKS[task])
    assert "x.tsv" in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_lines_of_qqp_are_left_out(tmp_path):
    (tmp_path / "x.tsv").write_text("question1\tquestion2\tis_duplicate\na\tb\t1\nc\n")
    assert glue.read_tsv(tmp_path / "x.tsv", glue.TASKS["qqp"]) == ([["a"], ["b"]], [1])


@pytest.mark.parametrize(
    "content",
    ["{", '{"data": [{"paragraphs": [{"qas": []}]}]}', '{"data": []}',
     '{"data": [{"paragraphs": [{"context": "ab", "qas": [{"question": "q", "answers": '
     '[{"text": "b", "answer_start": 0}]}]}]}]}'],
)  # fmt: skip
def test_faults_of_squads_json(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json"):
        squad.read_squad(tmp_path / "x.json")


# Downloading, from files in the publisher's form


def zipped(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for inside, source in names.items():
            archive.write(source, inside)


@pytest.mark.slow
def test_glue_is_downloaded_where_it_is_not_there(folders, tmp_path, monkeypatch):
    sst = SAMPLES / "glue/SST-2"
    zipped(
        tmp_path / "web/SST-2.zip",
        {f"SST-2/{name}": sst / name for name in ("train.tsv", "dev.tsv")},
    )
    monkeypatch.setattr(glue, "URL", (tmp_path / "web").as_uri())
    data_of("glue/sst2", folders["bert"], tmp_path, data_dir=str(tmp_path / "new"))
    got = (tmp_path / "new/SST-2/dev.tsv").read_bytes()
    assert got == (sst / "dev.tsv").read_bytes()


def test_mrpc_is_split_by_its_list_of_ids(folders, tmp_path, monkeypatch):
    web = tmp_path / "web"
    web.mkdir()
    shutil.copy(SAMPLES / "glue/MRPC/train.tsv", web / "all.txt")
    (web / "mrpc_dev_ids.tsv").write_text("105\t106\n")
    monkeypatch.setattr(glue, "URL", web.as_uri())
    monkeypatch.setattr(glue, "MRPC_URL", (web / "all.txt").as_uri())
    data_of("glue/mrpc", folders["bert"], tmp_path, data_dir=str(tmp_path / "new"))
    dev = glue.read_tsv(tmp_path / "new/MRPC/dev.tsv", glue.TASKS["mrpc"])
    assert dev == ([["Prices rose by two percent ."], ["Prices went up two percent ."]], [1])


@pytest.mark.slow
def test_without_network_one_line_says_what_to_give(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(glue, "URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(ValueError, match=r"SST-2/train\.tsv") as error:
        data_of("glue/sst2", folders["bert"], tmp_path, data_dir=str(tmp_path / "new"))
    assert "dataset.data_dir" in str(error.value)


def test_squad_and_wikitext_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(squad, "URL", (SAMPLES / "squad").as_uri())
    squad._fetch(tmp_path)
    assert squad.read_squad(tmp_path / "dev-v1.1.json")[2].answers[0][0] == "Ada Moss"
    names = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
    zipped(tmp_path / "w.zip", {f"wikitext-2/{n}": SAMPLES / "wikitext-2" / n for n in names})
    monkeypatch.setattr(wikitext, "URL", (tmp_path / "w.zip").as_uri())
    download.ensure(str(tmp_path / "w"), names, wikitext._fetch)
    assert (tmp_path / "w" / names[1]).is_file()


# Tokens and batches


def ragged(n, seed, batch_size=3):
    lists = [[i] * (1 + i * 7 % 11) for i in range(n)]
    return TokenBatches(from_lists({"input_ids": lists}, torch.arange(n)), 0, batch_size, seed)


def test_an_epoch_is_a_function_of_seed_and_number():
    one, again, other = ragged(40, 1), ragged(40, 1), ragged(40, 2)
    later = tensors(one, 5)
    assert same(later, tensors(again, 5))
    assert not same(later, tensors(one, 6))
    assert not same(later, tensors(other, 5))


def test_padding_reaches_the_batchs_own_longest_and_nothing_is_lost():
    seen = []
    for inputs, targets in ragged(40, None).epoch(0):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert mask.sum(1).max() == ids.shape[1]
        for row, real, target in zip(ids, mask, targets, strict=True):
            assert row[real.bool()].unique().tolist() == [target]
            assert row[~real.bool()].eq(0).all()
            assert real.sum() == 1 + target * 7 % 11
        seen += targets.tolist()
    assert sorted(seen) == list(range(40))


def test_training_pads_less_than_a_random_order_would_and_drops_the_rest():
    batches = ragged(400, 0, 8)
    shapes = [inputs["input_ids"].shape for inputs, _ in batches.epoch(0)]
    assert len(shapes) == len(batches) == 50
    real = sum(int(i["attention_mask"].sum()) for i, _ in batches.epoch(0))
    assert sum(a * b for a, b in shapes) < 1.15 * real
    # Lengths lie together; the order of the batches does not follow them.
    widths = [width for _, width in shapes]
    assert widths != sorted(widths)


def test_tokens_are_kept_on_disk_until_something_changes(folders, tmp_path, monkeypatch):
    first = data_of("glue/sst2", folders["bert"], tmp_path)
    made = set((tmp_path / "tokens").iterdir())

    def refuse(*args):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(glue, "_tokenize", refuse)
    again = data_of("glue/sst2", folders["bert"], tmp_path)
    assert same(tensors(first.train), tensors(again.train))
    assert set((tmp_path / "tokens").iterdir()) == made
    with pytest.raises(AssertionError, match="tokenised again"):
        data_of("glue/sst2", folders["bert"], tmp_path, max_length=9)


SQUAD = {"data_dir": str(SAMPLES / "squad"), "max_length": 64, "stride": 16}


def test_squads_targets_point_at_the_answer_in_each_window(folders, tmp_path):
    data = data_of("squad", folders["bert"], tmp_path, **SQUAD)
    task, answers, owners = data.task, set(), set()
    for inputs, targets in data.test.epoch(0):
        for ids, (start, end, first, last, window) in zip(
            inputs["input_ids"], targets.tolist(), strict=True
        ):
            owner, places = task.windows[window]
            owners.add(owner)
            assert ids[first - 1] == 3  # a separator
            assert ids[last + 1] == 3
            if end:
                answers.add(task.contexts[owner][places[start][0] : places[end][1]])
    assert answers == {"the hills", "the sea", "Ada Moss"}
    # a metric is a mean over questions, not over windows
    assert data.test_examples == len(owners) == 3 < data.test.tokens.lengths.numel()


@pytest.mark.parametrize("split", ["test", "validation"])
def test_perfect_logits_answer_every_question(folders, tmp_path, split):
    data = data_of("squad", folders["bert"], tmp_path, validation=0.5, **SQUAD)
    evidence = []
    for inputs, targets in getattr(data, split).epoch(0):
        logits = torch.zeros(*inputs["input_ids"].shape, 2)
        for row, (start, end, *_) in enumerate(targets.tolist()):
            logits[row, start, 0] = logits[row, end, 1] = 9.0
        evidence.append(data.task.evidence(logits, targets))
    figures = data.task.metrics(torch.cat(evidence), 0.0)
    assert figures["exact_match"] == figures["f1"] == 1.0


def test_no_question_is_in_two_splits(folders, tmp_path):
    data = data_of("squad", folders["bert"], tmp_path, validation=0.5, **SQUAD)
    owners = {
        name: {
            data.task.windows[window][0]
            for _, targets in split.epoch(0)
            for window in targets[:, 4].tolist()
        }
        for name, split in (("train", data.train), ("validation", data.validation))
    }
    assert max(owners["train"]) < min(owners["validation"])
    assert len(owners["validation"]) == data.validation.examples


# Models


ENCODER = {
    "bert": 2 * 6 + 1,  # query, key, value, output, two of the feed-forward net; the pooler
    "roberta": 6 + 1,  # the hidden layer of its classifier
    "distilbert": 2 * 6 + 1,  # likewise
    "deberta-v2": 6 + 1,
    "gpt2": 2 * 4,  # query, key and value are one
}


@pytest.mark.parametrize("kind", ENCODER)
def test_every_hidden_linear_is_prunable_no_output_no_embedding(folders, tmp_path, kind):
    data = data_of("glue/sst2", folders[kind], tmp_path)
    model = build_model(str(folders[kind]), **data.for_model)
    names = [layer.name for layer in prunable_layers(model)]
    assert len(names) == ENCODER[kind]
    assert not any("embed" in name or "score" in name for name in names)
    assert not {"classifier.weight", "classifier.out_proj.weight"} & set(names)
    inputs, targets = next(iter(data.train.epoch(0)))
    loss, logits = Compute(CPU, task=data.task).loss(model, inputs, targets)
    assert logits.shape == (4, 2)
    assert loss.item() == pytest.approx(
        -logits.log_softmax(1)[range(4), targets].mean().item(), rel=1e-5
    )


def test_padding_changes_no_logits(folders, tmp_path):
    for kind in ("bert", "gpt2"):
        data = data_of("glue/sst2", folders[kind], tmp_path, batch_size=16)
        model = build_model(str(folders[kind]), **data.for_model).eval()
        inputs, _ = next(iter(data.train.epoch(0)))
        assert not inputs["attention_mask"].all()
        whole = model(**inputs).logits
        for i, mask in enumerate(inputs["attention_mask"]):
            alone = {name: v[i : i + 1, : mask.sum()] for name, v in inputs.items()}
            torch.testing.assert_close(model(**alone).logits[0], whole[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blank", [False, True])
def test_a_decoder_classifies_at_the_last_token_of_the_text(folders, tmp_path, blank):
    """The model states no padding, and its tokenizer pads with another token than the last."""
    import transformers

    folder = tmp_path / "gpt2"
    shutil.copytree(folders["gpt2"], folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"pad_token": "[PAD]"})
    words.save_pretrained(folder)
    config = composed(f"model.name={folder}", "model=hf", "dataset=glue/sst2")
    data = data_of("glue/sst2", folder, tmp_path, batch_size=16)
    model = (blank_model(config.model, data) if blank else model_of(config, data)).eval()
    inputs, _ = next(iter(data.train.epoch(0)))
    lengths = inputs["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1
    whole = model(**inputs).logits
    for i, length in enumerate(lengths):
        alone = {name: values[i : i + 1, :length] for name, values in inputs.items()}
        torch.testing.assert_close(model(**alone).logits[0], whole[i], rtol=1e-4, atol=1e-5)


def test_transposed_weights_are_refused_where_rows_matter(folders, tmp_path):
    data = data_of("glue/sst2", folders["gpt2"], tmp_path)
    model = build_model(str(folders["gpt2"]), **data.for_model)
    for changed in ({"scope": "per_row"}, {"pattern": "2:4"}):
        with pytest.raises(ValueError, match="transposed"):
            create_pruner("magnitude_pre", model, sparsity=0.5, **changed)
    for name in ("wanda", "sparsegpt"):
        assert create_pruner(name, model, sparsity=0.5, pattern="2:4").masks


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_saved_model_loads_into_transformers_as_it_is(folders, tmp_path, kind):
    from transformers import AutoModelForSequenceClassification

    data = data_of("glue/sst2", folders[kind], tmp_path)
    model = build_model(str(folders[kind]), **data.for_model)
    model.config.save_pretrained(tmp_path)
    runs.save_model(tmp_path / "model.safetensors", model.state_dict())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    state = model.state_dict()
    assert set(loaded.state_dict()) == set(state)
    assert all(torch.equal(state[name], value) for name, value in loaded.state_dict().items())
    again = build_model(
        str(folders[kind]), checkpoint=str(tmp_path / "model.safetensors"), **data.for_model
    )
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())


def test_what_does_not_fit_is_said_in_one_line(folders, tmp_path):
    name = str(folders["bert"])
    text = {"num_classes": 2, "head": "classification", "vocab_size": 30, "max_length": 32}
    for changed, words in (
        ({"vocab_size": 99999}, "the tokenizer has 99,999"),
        ({"max_length": 513}, "reads at most 512 tokens"),
        ({"head": "language_modelling"}, "causal language modelling"),
    ):
        with pytest.raises(ValueError, match=words):
            build_model(name, **text | changed)
    with pytest.raises(ValueError, match="images of 8 pixels"):
        build_model(str(folders["vit"]), num_classes=10, image_size=16, channels=1)
    with pytest.raises(ValueError, match="bert has no model for images"):
        build_model(name, num_classes=10, image_size=8, channels=1)


def test_the_hub_out_of_reach_is_one_line(monkeypatch):
    from transformers import AutoConfig

    def refuse(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand so on")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ConfigError, match="give a local folder") as error:
        check(composed("model=bert_base", "dataset=glue/sst2"))
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="uv sync --extra text"):
        check(composed("model=minilm", "dataset=glue/sst2"))


# Runs


def config_of(tmp_path, folder, *overrides, dataset="glue/sst2"):
    where = {"squad": "squad", "wikitext2": "wikitext-2"}.get(dataset, "glue")
    length = 64 if dataset == "squad" else 32
    return composed(
        "model=bert_base", f"model.name={folder}", f"dataset={dataset}", "trainer.batch_size=4",
        f"dataset.data_dir={SAMPLES / where}", f"dataset.max_length={length}", "device=cpu",
        *(["dataset.stride=16"] if dataset == "squad" else []), "trainer.max_steps=3",
        "tracker.mode=disabled", f"cache_dir={tmp_path / 'cache'}", *overrides,
    )  # fmt: skip


def run(tmp_path, name, *arguments, **keywords):
    config = config_of(tmp_path, *arguments, **keywords)
    check(config)
    return run_experiment(config, tmp_path / name, LocalRecord())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "kind", "metric", "others"),
    [
        ("glue/sst2", "bert", "accuracy", set()),
        ("glue/cola", "bert", "matthews", {"accuracy"}),
        ("glue/mrpc", "distilbert", "accuracy", {"f1"}),
        ("glue/stsb", "bert", "pearson", {"spearman"}),
        ("glue/mnli", "gpt2", "accuracy", {"accuracy_mismatched", "loss_mismatched"}),
        ("squad", "bert", "f1", {"exact_match"}),
        ("wikitext2", "gpt2", "perplexity", set()),
    ],
)
def test_every_task_runs_and_names_its_headline(folders, tmp_path, dataset, kind, metric, others):
    record = run(tmp_path, "a", folders[kind], "sparsity=0.5", dataset=dataset)
    assert record["metric"] == metric
    assert set(record["metrics"]) == {metric, "loss"} | others
    # WikiText-2 has three official splits; from the others' training data some are held out.
    expected = {metric, "loss"} | {name for name in others if "mismatched" not in name}
    assert set(record["validation"]) == expected
    assert record["validation_examples"] >= 1
    assert record["params_nonzero"] == record["params_prunable"] // 2
    assert 0 < record["flops_sparse"] < record["flops_dense"]


@pytest.mark.slow
def test_a_teacher_whose_head_is_new_is_refused(folders, tmp_path):
    """The folder holds an encoder alone, so its classifier would have random weights."""
    with pytest.raises(ConfigError, match=r"trainer\.distill is 0\.5: the teacher's head"):
        run(tmp_path, "a", folders["bert"], "trainer.distill=0.5")
    run(tmp_path, "b", folders["bert"], "trainer.distill=0.5", "model.pretrain.epochs=1")
    run(tmp_path, "c", folders["bert"], "trainer.distill_hidden=0.5")
    whole = build_model(
        str(folders["bert"]), num_classes=2, vocab_size=30, max_length=32, head="classification"
    )
    shutil.copytree(folders["bert"], tmp_path / "whole")
    whole.save_pretrained(tmp_path / "whole")
    run(tmp_path, "d", tmp_path / "whole", "trainer.distill=0.5")


PRE = ["seven_pre", "snip", "grasp", "force", "taylor_pre", "wanda", "movement", "platon"]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", PRE)
def test_pruners_see_text(folders, tmp_path, pruner):
    overrides = [f"pruner={pruner}", "sparsity=0.5"]
    if PRUNERS[pruner].rounds > 1:
        overrides.append("pruner.rounds=2")
    record = run(tmp_path, "a", folders["bert"], *overrides)
    assert record["sparsity"] == pytest.approx(0.5, abs=0.02)


def test_grasp_sees_spans(folders, tmp_path):
    record = run(tmp_path, "a", folders["bert"], "pruner=grasp", "sparsity=0.5", dataset="squad")
    assert record["params_nonzero"] == record["params_prunable"] // 2


def test_a_run_is_repeatable_and_checkpointing_changes_no_figure(folders, tmp_path):
    one, two = (run(tmp_path, name, folders["bert"])["metrics"] for name in "ab")
    assert one == two
    called = []
    from transformers import BertPreTrainedModel

    enable = BertPreTrainedModel.gradient_checkpointing_enable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            BertPreTrainedModel, "gradient_checkpointing_enable",
            lambda self, *a: (called.append(1), enable(self, *a)),
        )  # fmt: skip
        saved = run(tmp_path, "c", folders["bert"], "trainer.gradient_checkpointing=true")
    assert called
    assert saved["metrics"]["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_transformers_vision_model_runs_on_images(folders, tmp_path):
    config = composed(
        "model=vit_hf", f"model.name={folders['vit']}", "trainer.max_steps=2", "device=cpu",
        "tracker.mode=disabled", f"cache_dir={tmp_path}",
    )  # fmt: skip
    check(config)
    record = run_experiment(config, tmp_path / "a", LocalRecord())
    assert record["params_nonzero"] == int(0.3 * record["params_prunable"] + 1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=vit_tiny", "dataset=glue/sst2"], "it reads images"),
        (["model=minilm", "dataset=digits"], "it reads text"),
        (["model=minilm", "dataset=glue/sst2", "pruner=synflow"], "synflow"),
        (["model=minilm", "dataset=glue/sst2", "dataset.max_length=2"], "dataset.max_length"),
        (["trainer.gradient_checkpointing=true"], "gradient_checkpointing"),
        (["model=minilm", "dataset=wikitext2"], "causal language modelling"),
        (["model=minilm", "dataset=squad", "trainer.distill=0.5", "model.pretrained=true"],
         "trainer.distill"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_early(overrides, words):
    with pytest.raises(ConfigError, match=words):
        check(composed(*overrides))


PAPER = sorted(p.stem for p in (ROOT / "conf/experiment/paper").glob("*.yaml"))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_presets(name, monkeypatch):
    monkeypatch.setattr("seven_exp.models.check_model", lambda name, head, **arguments: None)
    config = composed(f"experiment=paper/{name}")
    check(config)
    # (t_i, N, s) of the paper
    windows = {
        "mnli": (5400, 16600, 0.7), "qqp": (5400, 16600, 0.9), "qnli": (2000, 12000, 0.7),
        "sst2": (1000, 4000, 0.6), "rte": (200, 1000, 0.6), "mrpc": (300, 600, 0.5),
        "cola": (500, 1000, 0.5), "stsb": (500, 2000, 0.5),
    }  # fmt: skip
    if name in windows or name == "pre":
        assert (config.optimizer.lr, config.trainer.batch_size) == (2e-5, 32)
    if name in windows:
        begin, end = config.schedule.begin_step, config.schedule.end_step
        assert (begin, end - begin, config.sparsity) == windows[name]
        assert config.dataset.name == f"glue/{name}"
        assert (config.optimizer.weight_decay, config.dataset.max_length) == (0.0, 512)
        # Only the authors' STS-B has dropout before the output layer.
        assert config.model.head_dropout == (None if name == "stsb" else 0.0)


def test_other_peoples_presets(monkeypatch):
    monkeypatch.setattr("seven_exp.models.check_model", lambda name, head, **arguments: None)
    platon, movement, obert = (
        composed(f"experiment=paper/{name}") for name in ("platon", "movement", "obert")
    )
    # 27,000 steps before the end of eight epochs of MNLI's 392,702 examples
    steps = 8 * (392_702 // 32)
    assert platon.schedule.end_step * steps == pytest.approx(steps - 27_000, rel=1e-3)
    assert (platon.pruner.name, platon.optimizer.name) == ("platon", "adamax")
    # 10,800 steps before the end of ten epochs of SQuAD's windows of text
    assert 43_000 < movement.schedule.end_step * 10 * (87_599 // 16) < 45_500
    assert (movement.pruner.name, movement.dataset.name) == ("movement", "squad")
    plan = Plan.of(obert, 392_702 // 32)
    assert [round(x * 30 / plan.steps) for x in (plan.begin, plan.end, plan.interval)] == [2, 26, 4]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2"])
def test_dropout_of_the_head_alone_is_set(folders, kind):
    text = {"num_classes": 2, "vocab_size": 20, "max_length": 32, "head": "classification"}

    def rates(**arguments):
        model = build_model(str(folders[kind]), **text, pretrained=False, **arguments)
        drops = {n: m for n, m in model.named_modules() if type(m).__name__.endswith("Dropout")}
        return {n: drop.p if hasattr(drop, "p") else drop.drop_prob for n, drop in drops.items()}

    usual, changed = rates(), rates(head_dropout=0.0)
    head = {n for n in usual if n in ("dropout", "classifier.dropout")}
    assert len(head) == 1
    assert changed == usual | dict.fromkeys(head, 0.0)
    with pytest.raises(ValueError, match=r"model.head_dropout: .* has no dropout of its head"):
        build_model(str(folders["gpt2"]), **text, pretrained=False, head_dropout=0.0)


@pytest.mark.parametrize("name", ["sst2", "stsb"])
def test_the_small_presets(name):
    config = composed(f"experiment=minilm/{name}", "dataset.data_dir=tests/data/glue")
    check(config)
    assert config.dataset.name == f"glue/{name}"
    assert (config.optimizer.warmup_steps, config.optimizer.lr) == (0.1, 2e-4)


@pytest.mark.parametrize("name", sorted(glue.TASKS))
def test_every_glue_task_has_its_file(name):
    assert composed(f"dataset=glue/{name}").dataset.name == f"glue/{name}"


@pytest.mark.slow
def test_minilm_from_the_command_line(tmp_path):
    command = [
        *(python(), "train.py", "model=minilm", "dataset=glue/sst2", "pruner=seven_dyn"),
        *("sparsity=0.6", "trainer.max_steps=4", "trainer.batch_size=4", "tracker.mode=disabled"),
        *(f"dataset.data_dir={SAMPLES / 'glue'}", f"cache_dir={tmp_path}", "device=cpu"),
        *(f"hydra.run.dir={tmp_path / 'run'}", "trainer.save_model=false"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/results.json").read_text())
    # six blocks of 4 * 384^2 + 2 * 384 * 1536, and the pooler
    assert record["params_prunable"] == 6 * (4 * 384**2 + 2 * 384 * 1536) + 384**2
    assert record["params_nonzero"] == int(0.4 * record["params_prunable"] + 1e-6)
    assert record["metric"] == "accuracy"
