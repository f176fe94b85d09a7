"""Sets of the hub, from local folders in the hub's formats."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_conf import composed
from test_text import folders  # noqa: F401

from seven_exp.datasets import build_data, check_data
from seven_exp.runs import run_hash
from seven_exp.runs.check import check
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord

REVIEWS = [("the film is wonderful", "good"), ("a dull story", "bad"), ("moving", "good")] * 4


def write(folder, kind, splits=("train", "test"), rows=REVIEWS):
    """Files called after their splits, as on the hub."""
    import pandas

    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        table = pandas.DataFrame(rows, columns=["text", "label"])
        path = folder / f"{split}.{kind}"
        if kind == "parquet":
            table.to_parquet(path)
        elif kind == "csv":
            table.to_csv(path, index=False)
        else:
            path.write_text("\n".join(map(json.dumps, table.to_dict("records"))))
    return folder


TEXT = {
    "repository": None, "subset": None, "revision": None, "text_columns": ["text"],
    "label_column": "label", "train_split": "train", "test_split": "test",
    "validation_split": None, "max_length": 16,
}  # fmt: skip


@pytest.fixture
def loaded(folders, tmp_path):  # noqa: F811
    def load(folder, name="hf", **changed):
        own = {**TEXT, "tokenizer": str(folders["bert"])}
        if name == "hf_images":
            own = {k: v for k, v in own.items() if k not in ("text_columns", "tokenizer")}
            own |= {"image_column": "image", "image_size": 8, "augment": False}
            del own["max_length"]
        own |= {"data_dir": str(folder), "cache_dir": str(tmp_path / "cache"), **changed}
        return build_data(name, batch_size=4, seed=0, **own)

    return load


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_texts_with_their_classes_from_every_kind_of_file(loaded, tmp_path, kind):
    data = loaded(write(tmp_path / kind, kind))
    assert (data.num_classes, data.test.examples) == (2, 12)
    # Classes in alphabetical order: bad, good.
    assert data.test.tokens.targets.tolist() == [1, 0, 1] * 4
    inputs, targets = next(data.test.epoch(0))
    assert inputs["input_ids"].shape == (4, 3)  # [CLS] moving [SEP]: the shortest come first
    assert targets.tolist() == [1] * 4
    # From the cache of tokens they are the same.
    again = loaded(tmp_path / kind)
    assert torch.equal(
        again.train.tokens.columns["input_ids"], data.train.tokens.columns["input_ids"]
    )


def test_pairs_official_validation_and_named_columns(loaded, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = ["question,answer,fits"] + [f"who {i},me,{i % 2}" for i in range(6)]
    for split in ("train", "dev", "test"):
        (folder / f"{split}.csv").write_text("\n".join(rows))
    data = loaded(
        folder, text_columns=["question", "answer"], label_column="fits",
        validation_split="validation", validation=None,  # the library's name of dev
    )  # fmt: skip
    assert data.validation.examples == 6
    assert data.train.tokens.targets.tolist() == [0, 1] * 3


def write_images(folder):
    """A folder for each class; the pixels of an image have its class's colour."""
    for split, n in (("train", 6), ("test", 2)):
        for value, label in ((10, "dark"), (200, "light")):
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(np.full((12, 10, 3), value + i, np.uint8))
                image.save(folder / split / label / f"{i}.png")


def test_images_from_folders(loaded, tmp_path):
    write_images(tmp_path / "images")
    data = loaded(tmp_path / "images", "hf_images")
    assert (data.num_classes, data.image_size, data.channels) == (2, 8, 3)
    assert data.test.images.shape == (4, 3, 8, 8)
    bright = data.test.images.float().mean((1, 2, 3))
    assert bright.tolist() == [10, 11, 200, 201]
    assert data.test.targets.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"label_column": "labels"}, "dataset.label_column is 'labels': did you mean 'label'?"),
        ({"text_columns": ["texts"]}, "dataset.text_columns is 'texts': did you mean 'text'?"),
        ({"test_split": "tset"}, "dataset.test_split is 'tset': did you mean 'test'?"),
        ({"validation_split": "dev"}, "dataset.validation_split is 'dev': choose from test, train"),
    ],
)
def test_what_a_set_does_not_hold(loaded, tmp_path, changed, words):
    folder = write(tmp_path / "set", "csv")
    with pytest.raises(ValueError, match=re.escape(words)):
        loaded(folder, **changed)


def test_labels_that_train_does_not_have(loaded, tmp_path):
    folder = write(tmp_path / "set", "csv")
    (folder / "test.csv").write_text("text,label\nmoving,grand\n")
    with pytest.raises(ValueError, match="label 'grand' in split test, whose labels are bad, good"):
        loaded(folder)
    (folder / "test.csv").write_text("text,label\nmoving,\n")
    with pytest.raises(ValueError, match="an example has no label in split test"):
        loaded(folder)


def test_empty_cells_are_no_class_and_no_text(loaded, tmp_path):
    folder = write(tmp_path / "set", "csv")
    whole = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(f"{whole}moving,\n")
    with pytest.raises(ValueError, match="an example has no label in split train"):
        loaded(folder)
    (folder / "train.csv").write_text(f"{whole},good\n")
    with pytest.raises(ValueError, match="example 12 of split train has no text"):
        loaded(folder)


def test_a_folder_called_like_a_reader_of_the_library(loaded, tmp_path, monkeypatch):
    write(tmp_path / "csv", "json")
    monkeypatch.chdir(tmp_path)
    assert loaded("csv").test.examples == 12


def test_a_broken_file_says_what_is_wrong_with_it(loaded, tmp_path):
    folder = write(tmp_path / "set", "csv")
    with (folder / "train.csv").open("a") as file:
        file.write('"never closed,good\n')
    with pytest.raises(ValueError, match=r"can't be read: .*inside string starting at row 13"):
        loaded(folder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "give one of them"),
        ({"repository": "a/b", "data_dir": "."}, "give one of them"),
        ({"data_dir": "/nowhere"}, "dataset.data_dir is '/nowhere': no such folder"),
        ({"repository": "a/b", "text_columns": []}, "give one column, or two"),
        ({"repository": "a/b", "max_length": 3}, "dataset.max_length is 3"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(changed, words):
    given = {**TEXT, "data_dir": None, "tokenizer": "minilm", "cache_dir": "c", **changed}
    with pytest.raises(ValueError, match=words):
        check_data("hf", **given)


@pytest.mark.parametrize("name", ["hf", "hf_images"])
def test_without_the_library_its_extra_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"^dataset\.data_dir is '.*': it needs datasets: uv sync"):
        check_data(
            name, **{**TEXT, "data_dir": str(tmp_path), "tokenizer": "minilm", "cache_dir": "c"}
        )


def test_a_set_that_can_t_be_downloaded_is_one_line(loaded, monkeypatch):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        ValueError, match=r"dataset\.repository is 'a/b': it can't be read: no netw"
    ):
        loaded(None, data_dir=None, repository="a/b")


def test_a_run_on_a_folder_is_known_by_its_files(folders, tmp_path):  # noqa: F811
    folder = write(tmp_path / "reviews", "csv")
    overrides = [
        *("model=hf", f"model.name={folders['bert']}", "dataset=hf", "dataset.max_length=16"),
        *(f"dataset.data_dir={folder}", f"cache_dir={tmp_path / 'cache'}", "tracker.mode=disabled"),
        *("trainer.max_steps=3", "trainer.batch_size=4", "pruner=magnitude_dyn", "sparsity=0.5"),
        "schedule.begin_step=0",
    ]
    config = composed(*overrides)
    check(config)
    before = run_hash(config)
    record = run_experiment(config, tmp_path / "run", LocalRecord())
    assert record["dataset"] == "hf/reviews"
    assert record["sparsity"] == pytest.approx(0.5, abs=1e-3)
    (folder / "train.csv").write_text("text,label\na,good\nb,bad\n")
    assert run_hash(config) != before
