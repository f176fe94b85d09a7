"""Any classification set of texts or images on Hugging Face's hub, or in a local folder."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seven_exp.datasets.batches import Data, InMemory, Text, shift_and_mirror
from seven_exp.datasets.cache import cached_tensors
from seven_exp.datasets.folders import IMAGENET_MEAN, IMAGENET_STD, in_colour
from seven_exp.datasets.registry import dataset
from seven_exp.datasets.tokens import (
    TokenBatches,
    Tokens,
    cached,
    from_lists,
    load_tokenizer,
    model_columns,
    padding,
)
from seven_exp.messages import nearest, one_line

_NO_LABEL = -1
"""Label of the examples of splits whose labels are not public."""


@dataclass(frozen=True)
class _Source:
    """Where a set is, and what its splits are called.

    Attributes:
        repository: Its id on the hub; None: a local folder.
        data_dir: The local folder.
        subset: One of the repository's configurations.
        revision: Branch, tag or commit on the hub.
        splits: ``train``, ``test`` and ``validation`` -> name in the set; None: there is none.
        cache: Cache of converted local files.
    """

    repository: str | None
    data_dir: str | None
    subset: str | None
    revision: str | None
    splits: Mapping[str, str | None]
    cache: str

    @property
    def described(self) -> str:
        """For messages: the key and the value that name the set."""
        if self.repository is None:
            return f"dataset.data_dir is '{self.data_dir}'"
        return f"dataset.repository is '{self.repository}'"

    def check(self) -> None:
        """Raise ValueError unless one place is given and the library is installed."""
        if (self.repository is None) == (self.data_dir is None):
            raise ValueError(
                "dataset.repository and dataset.data_dir: give one of them, a hub id such as "
                "stanfordnlp/imdb or a local folder"
            )
        if self.data_dir is not None and not Path(self.data_dir).expanduser().is_dir():
            raise ValueError(f"{self.described}: no such folder")
        if importlib.util.find_spec("datasets") is None:
            raise ValueError(f"{self.described}: it needs datasets: uv sync --extra text")

    def read(self) -> dict[str, Any]:
        """The splits that have a name, from the hub's cache if it has them.

        Raises:
            ValueError: The set can't be read, or a split is missing.
        """
        self.check()
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        local = self.data_dir is not None
        # The library takes a bare name such as csv for one of its own readers.
        place = str(Path(self.data_dir or "").expanduser().absolute()) if local else self.repository
        try:
            found = datasets.load_dataset(
                place,
                self.subset,
                revision=None if local else self.revision,
                cache_dir=str(Path(self.cache).expanduser() / "datasets") if local else None,
            )
        except Exception as error:
            reason = f"{one_line(error.__cause__ or error):.200}"
            raise ValueError(f"{self.described}: it can't be read: {reason}") from error
        chosen = {}
        for kind, name in self.splits.items():
            if name is None:
                continue
            if name not in found:
                raise ValueError(
                    f"dataset.{kind}_split is '{name}': {nearest(name, map(str, found))}"
                )
            chosen[kind] = found[name]
        return chosen


def _column(split: Any, key: str, name: str) -> Any:
    """A split's column.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in split.column_names:
        raise ValueError(f"{key} is '{name}': {nearest(name, split.column_names)}")
    return split[name]


def _texts(splits: Mapping[str, Any], kind: str, column: str) -> list[Any]:
    """A split's column of texts.

    Raises:
        ValueError: There is none of this name, or an example has no text.
    """
    key = "dataset.text_columns"
    texts = list(_column(splits[kind], key, column))
    if None in texts:
        raise ValueError(f"{key}: example {texts.index(None)} of split {kind} has no {column}")
    return texts


def _labels(splits: Mapping[str, Any], column: str) -> tuple[dict[str, Tensor], int]:
    """Class indices of each split, and the number of classes.

    Classes that the set does not name are the sorted labels of its training split.

    Raises:
        ValueError: The column is missing, an example has no label, or its label is not in train.
    """
    key = "dataset.label_column"
    values = {kind: list(_column(split, key, column)) for kind, split in splits.items()}
    named = getattr(splits["train"].features[column], "names", None)
    if named is None:
        kinds = sorted({value for value in values["train"] if value is not None}, key=str)
        if any(isinstance(kind, float) for kind in kinds):
            raise ValueError(f"{key} is '{column}': it holds numbers, not classes")
    else:
        kinds = list(range(len(named)))
    place = {kind: number for number, kind in enumerate(kinds)}
    for kind, own in values.items():
        if odd := [value for value in own if value not in place]:
            known = ", ".join(map(str, kinds[:5]))
            what = "an example has no label" if odd[0] in (_NO_LABEL, None) else f"label {odd[0]!r}"
            raise ValueError(
                f"{key} is '{column}': {what} in split {kind}, whose labels are {known}; mend it, "
                f"or choose another dataset.{kind}_split"
            )
    return {k: torch.tensor([place[v] for v in own]) for k, own in values.items()}, len(kinds)


def _check_text(
    *,
    repository: str | None,
    data_dir: str | None,
    text_columns: list[str],
    max_length: int,
    **_: object,
) -> None:
    _Source(repository, data_dir, None, None, {}, "").check()
    if not 1 <= len(text_columns) <= 2:
        raise ValueError(f"dataset.text_columns is {text_columns}: give one column, or two")
    if max_length < 8:
        raise ValueError(f"dataset.max_length is {max_length}: choose 8 or more")


@dataset("hf", check=_check_text, head="classification", known_by="files")
def hf(  # noqa: PLR0913  each keyword is a key of conf/dataset
    *,
    batch_size: int,
    seed: int,
    repository: str | None,
    data_dir: str | None,
    subset: str | None,
    revision: str | None,
    text_columns: list[str],
    label_column: str,
    train_split: str,
    test_split: str,
    validation_split: str | None,
    tokenizer: str,
    max_length: int,
    cache_dir: str,
) -> Data:
    """Texts, or pairs of texts, of which the longer is truncated.

    Raises:
        ValueError: The set can't be read, or lacks a split, a column or a label.
    """
    named = {"train": train_split, "test": test_split, "validation": validation_split}
    splits = _Source(repository, data_dir, subset, revision, named, cache_dir).read()
    labels, classes = _labels(splits, label_column)
    words = load_tokenizer(tokenizer)

    def batches(kind: str) -> TokenBatches:
        split, targets = splits[kind], labels[kind]
        texts = [_texts(splits, kind, name) for name in text_columns]

        def tokenised() -> Tokens:
            encoded = words(*texts, truncation=True, max_length=max_length)
            return from_lists(model_columns(encoded), targets)

        settings = {"split": split._fingerprint, "texts": text_columns, "max_length": max_length}
        settings |= {"label": label_column, "classes": classes}
        tokens = cached(cache_dir, words, [], settings, tokenised)
        return TokenBatches(tokens, padding(words), batch_size, seed if kind == "train" else None)

    return Data(
        batches("train"),
        batches("test"),
        classes,
        text=Text(len(words), max_length, padding(words)),
        validation=batches("validation") if "validation" in splits else None,
    )


def _check_images(*, repository: str | None, data_dir: str | None, **_: object) -> None:
    _Source(repository, data_dir, None, None, {}, "").check()


@dataset("hf_images", check=_check_images, known_by="files")
def hf_images(  # noqa: PLR0913  as above
    *,
    batch_size: int,
    seed: int,
    repository: str | None,
    data_dir: str | None,
    subset: str | None,
    revision: str | None,
    image_column: str,
    label_column: str,
    train_split: str,
    test_split: str,
    validation_split: str | None,
    image_size: int,
    augment: bool,
    cache_dir: str,
) -> Data:
    """Images in colour, decoded once and held in memory.

    Raises:
        ValueError: The set can't be read, or lacks a split, a column or a label.
    """
    named = {"train": train_split, "test": test_split, "validation": validation_split}
    splits = _Source(repository, data_dir, subset, revision, named, cache_dir).read()
    labels, classes = _labels(splits, label_column)

    def batches(kind: str) -> InMemory:
        trained = kind == "train"
        _column(splits[kind], "dataset.image_column", image_column)
        return InMemory(
            _decoded(splits[kind], image_column, image_size, Path(cache_dir) / "images"),
            labels[kind],
            IMAGENET_MEAN,
            IMAGENET_STD,
            batch_size,
            seed if trained else None,
            augment=shift_and_mirror if augment and trained else None,
        )

    validation = batches("validation") if "validation" in splits else None
    return Data(batches("train"), batches("test"), classes, image_size, 3, validation=validation)


def _decoded(split: Any, column: str, size: int, cache: Path) -> Tensor:
    """All images of a split, uint8 (n, 3, size, size).

    Raises:
        ValueError: The column holds no images.
    """
    from torchvision.transforms import v2

    decode = v2.Compose([v2.ToImage(), v2.Resize((size, size), antialias=True)])

    def build() -> dict[str, Tensor]:
        images = torch.empty((len(split), 3, size, size), dtype=torch.uint8)
        for number, image in enumerate(_pictures(split, column)):
            images[number] = decode(in_colour(image))
        return {"images": images}

    return cached_tensors(cache, f"{split._fingerprint}-{column}-{size}-8bit", build)["images"]


def _pictures(split: Any, column: str) -> Sequence[Any]:
    """A column as PIL images.

    Raises:
        ValueError: It holds something else.
    """
    if not hasattr(split.features[column], "decode_example"):
        raise ValueError(f"dataset.image_column is '{column}': it holds no images")
    pictures: Sequence[Any] = split[column]
    return pictures
