"""The split to choose on: held out of train, the same in every run; test is measured once."""

import itertools
import json
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_datasets import FACTS, in_memory, small, write_folders  # noqa: F401
from test_experiment import run

from seven_exp.datasets import Data, build_data, held_out
from seven_exp.datasets.batches import InMemory
from seven_exp.datasets.tokens import TokenBatches, Tokens
from seven_exp.datasets.validation import stratified, with_validation
from seven_exp.tasks import LanguageModelling
from seven_exp.training import evaluation


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(1, 59), st.integers(0, 9))
def test_each_class_gives_its_share(classes, count, seed):
    count = min(count, len(classes) - 1)
    chosen = stratified(torch.tensor(classes), count, seed).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    given_by = {kind: sum(classes[i] == kind for i in chosen) for kind in set(classes)}
    # One threshold t cuts all classes: class c gives t n_c examples, rounded up or down.
    lowest = max((n - 1) / classes.count(kind) for kind, n in given_by.items())
    highest = min((n + 1) / classes.count(kind) for kind, n in given_by.items())
    assert lowest < highest
    assert chosen == stratified(torch.tensor(classes), count, seed).tolist()


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_classes():
    classes = torch.arange(1000) % 10
    one, two = (set(stratified(classes, 100, seed).tolist()) for seed in (0, 1))
    assert 0 < len(one & two) < 40  # 10 are expected of two independent choices
    assert len({i % 7 for i in one}) == 7


def rows(batches):
    """The images as tuples, in order."""
    return [tuple(image.flatten().tolist()) for x, _ in batches.epoch(0) for image in x]


@pytest.mark.parametrize("name", FACTS)
def test_train_loses_what_validation_gains_whatever_the_seed(name, small):  # noqa: F811
    def parts(seed, **settings):
        data = build_data(name, batch_size=1, seed=seed, **{**small[name], **settings})
        return sorted(rows(data.train)), data.validation and rows(data.validation), rows(data.test)

    whole, nothing, test = parts(0)
    train, validation, same_test = parts(0, validation=0.25)
    assert nothing is None
    assert len(validation) == held_out(len(whole), 0.25)
    assert sorted(train + validation) == whole
    assert same_test == test
    # Another seed, or augmentation, shuffles and moves what is trained on, and nothing else.
    assert parts(7, validation=0.25, augment=True)[1:] == (validation, test)


@pytest.mark.parametrize("name", FACTS)
def test_a_limit_holds_for_what_validation_leaves(name, small):  # noqa: F811
    def parts(**settings):
        data = build_data(name, batch_size=1, seed=0, **{**small[name], **settings})
        return rows(data.train), rows(data.validation)

    train, validation = parts(validation=0.25)
    few, same = parts(validation=0.25, limit=0.5)
    assert same == validation
    assert len(few) == max(1, round(0.5 * len(train)))
    assert set(few) <= set(train)


def test_digits_validation_has_its_classes_shares():
    data = build_data("digits", batch_size=64, seed=3, augment=False, validation=None)
    counts = torch.bincount(data.validation.targets, minlength=10)
    assert counts.sum() == 144  # a tenth of 1,437
    assert (counts - torch.bincount(data.train.targets) / 9).abs().max() <= 1


def test_an_official_validation_split_is_used_unless_a_fraction_is_given(tmp_path):
    write_folders(tmp_path, test="test")
    for kind in ("cat", "dog"):
        (tmp_path / "val" / kind).mkdir(parents=True)
        source = next((tmp_path / "test" / kind).iterdir())
        (tmp_path / "val" / kind / "v.jpg").write_bytes(source.read_bytes())
    own = {"data_dir": str(tmp_path), "image_size": 8, "augment": False}
    for name, more in (("image_folder", {"cache_dir": str(tmp_path / "c")}), ("imagenet", {"workers": 0})):  # fmt: skip  # noqa: E501
        sizes = {}
        for asked in (None, 0.25, 0.0):
            data = build_data(name, batch_size=1, seed=0, validation=asked, **own, **more)
            sizes[asked] = [
                split and split.examples for split in (data.train, data.validation, data.test)
            ]
        assert sizes == {None: [12, 2, 6], 0.25: [9, 3, 6], 0.0: [12, None, 6]}


def tokens(n, targets, owners=None):
    """Sequences of one to three tokens; each token is the number of its sequence."""
    lengths = torch.arange(n) % 3 + 1
    columns = {"input_ids": torch.arange(n).repeat_interleave(lengths).int()}
    return TokenBatches(Tokens(columns, lengths, targets), 99, 2, seed=0, owners=owners)


def numbers(batches):
    """The numbers of the sequences, ascending."""
    return sorted(int(row[0]) for x, _ in batches.epoch(0) for row in x["input_ids"])


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        # blocks of one text, and windows of questions: the end, and no question in both
        (tokens(10, None), [8, 9]),
        (tokens(8, torch.zeros(8, 5).long(), torch.tensor([0, 0, 1, 2, 3, 3, 4, 4])), [6, 7]),
    ],
)
def test_windows_of_a_text_give_their_end(batches, expected):
    data = Data(batches, batches, 5, task=LanguageModelling())
    data = with_validation(data, 0.2)
    assert numbers(data.validation) == expected
    assert numbers(data.train) == [i for i in range(len(batches.tokens)) if i not in expected]
    for split in (data.train, data.validation):
        for inputs, _ in split.epoch(0):
            real = inputs["attention_mask"].sum(1)
            assert real.tolist() == [i % 3 + 1 for i in inputs["input_ids"][:, 0].tolist()]


def test_numbers_are_held_out_at_random():
    batches = tokens(40, torch.linspace(0, 5, 40))
    data = with_validation(Data(batches, batches, 1), None)
    held = numbers(data.validation)
    assert len(held) == 4
    assert held not in (list(range(4)), list(range(36, 40)))
    assert sorted(held + numbers(data.train)) == list(range(40))
    for inputs, targets in data.validation.epoch(0):
        expected = torch.linspace(0, 5, 40)[inputs["input_ids"][:, 0]]
        assert torch.equal(targets, expected)


@dataclass
class Bare:
    """What the protocol of batches asks for, and no more."""

    whole: InMemory

    def __len__(self):
        return len(self.whole)

    def epoch(self, index, start=0):
        return self.whole.epoch(index, start)


def test_batches_that_cant_be_divided_still_train(caplog):
    bare = Bare(in_memory(batch_size=4, seed=0))
    data = Data(bare, bare, 11, 1, 1)
    assert with_validation(data, None).validation is None
    assert "can't be divided, so there is no validation split" in caplog.text
    with pytest.raises(ValueError, match=r"dataset.validation is 0.2: .* choose 0, give them"):
        with_validation(data, 0.2)


@pytest.mark.parametrize(
    ("examples", "fraction", "count"),
    [(1437, None, 144), (10, 0.25, 2), (10, 0.01, 1), (10, 0.99, 9), (10, 0.0, 0), (1, None, 0)],
)
def test_how_many_are_held_out(examples, fraction, count):
    assert held_out(examples, fraction) == count


@pytest.fixture
def measured(monkeypatch):
    """The splits that are measured, in order, by their numbers of examples."""
    seen, evaluate = [], evaluation.evaluate

    def counted(model, batches, compute):
        seen.append(batches.examples)
        return evaluate(model, batches, compute)

    monkeypatch.setattr(evaluation, "evaluate", counted)
    return seen


@pytest.mark.parametrize("name", ["dense", "magnitude", "seven_pre", "seven_dyn"])
def test_test_is_measured_once_at_the_end(tmp_path, measured, name):
    record = run(
        tmp_path, "a", f"pruner={name}", "sparsity=0.9", "trainer.eval_interval=8",
        "trainer.max_steps=20",
    )  # fmt: skip
    # 8, 16 and 20 steps; magnitude measures its level at 14
    assert measured == [144] * (4 if name == "magnitude" else 3) + [360]
    lines = [json.loads(x) for x in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "validation/accuracy" in x] == [8, 16, 20]
    assert [x["step"] for x in lines if "test/accuracy" in x] == [20]
    assert record["metrics"]["accuracy"] == lines[-1]["test/accuracy"]
    assert record["validation"]["accuracy"] == lines[-1]["validation/accuracy"]
    assert (record["validation_examples"], record["test_examples"]) == (144, 360)
    assert record["splits"] == {
        "metrics": "test", "validation": "validation", "best": "validation", "levels": "validation"
    }  # fmt: skip


def test_without_a_validation_split_nothing_is_chosen(tmp_path, measured):
    record = run(
        tmp_path, "a", "pruner=magnitude", "dataset.validation=0", "trainer.eval_interval=8",
        "trainer.max_steps=20", "trainer.save_model=true",
    )  # fmt: skip
    assert measured == [360]
    assert record["best"] == record["validation"] == {}
    assert record["validation_examples"] is None
    assert record["splits"] == {
        "metrics": "test", "validation": None, "best": None, "levels": None
    }  # fmt: skip
    assert [set(level) for level in record["levels"]] == [{"step", "sparsity"}]
    assert not (tmp_path / "a/checkpoints/best.safetensors").exists()


def test_another_split_is_another_run(tmp_path):
    hashes = [
        run(tmp_path, str(i), f"dataset.validation={value}", "trainer.max_steps=1")["run_hash"]
        for i, value in enumerate(("null", 0, 0.2))
    ]
    assert all(a != b for a, b in itertools.combinations(hashes, 2))
