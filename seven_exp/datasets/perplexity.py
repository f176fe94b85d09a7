"""Perplexity by the published protocol: one text in blocks of one length that don't overlap."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seven_exp.datasets.batches import Batches, Data, Text, batches_an_epoch, epoch_seed
from seven_exp.datasets.corpora import (
    CORPORA,
    Corpus,
    Split,
    corpus_of,
    count_rows,
    fetched,
    locate,
    read_rows,
)
from seven_exp.datasets.registry import KnownBy, dataset
from seven_exp.datasets.tokens import cached, from_lists, load_tokenizer
from seven_exp.tasks import Batch, LanguageModelling

LENGTH = 2048
"""Tokens of a block, and of a calibration sequence, in the published protocol."""

_KEY = "dataset.data_dir"


@dataclass(frozen=True)
class Blocks:
    """Sequences of one length; a model's input and target.

    Attributes:
        ids: int32, (n, length).
        batch_size: Sequences per batch.
        seed: None: all, in their order; a number shuffles, and drops the last, smaller batch if
            there is a full one.
    """

    ids: Tensor
    batch_size: int
    seed: int | None = None

    @property
    def examples(self) -> int:
        """Number of sequences."""
        return len(self.ids)

    strata = None
    """Neighbours belong together: validation is the end of the text."""

    def divided(self, held_out: Tensor) -> tuple["Blocks", "Blocks"]:
        """The other sequences for training; and these for evaluation, in their order."""
        chosen = torch.isin(torch.arange(len(self.ids)), held_out)
        return replace(self, ids=self.ids[~chosen]), replace(self, ids=self.ids[chosen], seed=None)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return batches_an_epoch(len(self.ids), self.batch_size, self.seed)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``index`` from number ``start`` on, the same in every call."""
        order = torch.arange(len(self.ids))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, index))
            order = torch.randperm(len(order), generator=generator)
        for number in range(start, len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            ids = self.ids[chosen].long()
            yield {"input_ids": ids}, ids


class Later:
    """A split that is read when it is first used.

    Args:
        read: Reads it.
    """

    def __init__(self, read: Callable[[], Blocks]) -> None:
        self._read = read

    @cached_property
    def _blocks(self) -> Blocks:
        return self._read()

    strata = None

    @property
    def examples(self) -> int:
        """Number of sequences."""
        return self._blocks.examples

    def divided(self, held_out: Tensor) -> tuple[Blocks, Blocks]:
        """See `Blocks.divided`."""
        return self._blocks.divided(held_out)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self._blocks)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``index`` from number ``start`` on."""
        return self._blocks.epoch(index, start)


def blocks_of(
    corpus: Corpus, split: Split, path: Path, tokenizer: Any, length: int
) -> list[list[int]]:
    """Tokenise a split as one text, with the tokenizer's special tokens, and cut it into blocks.

    Raises:
        ValueError: The text is shorter than one block.
    """
    rows, blocks = read_rows(_KEY, path), None
    if split == "test":
        rows, blocks = rows[: corpus.first], corpus.blocks
    ids = tokenizer(corpus.joiner.join(rows), verbose=False)["input_ids"]
    if len(ids) < length:
        raise ValueError(
            f"{_KEY}: {path} has {len(ids):,} tokens, less than one block of {length:,}: give a "
            f"longer text, or dataset.max_length={max(2, len(ids))}"
        )
    starts = range(0, len(ids) - length + 1, length)
    return [ids[start : start + length] for start in starts][:blocks]


def departures(corpus: Corpus, split: Split, path: Path, length: int) -> list[str]:
    """How a use of a corpus departs from the published protocol."""
    if corpus.repository is None:
        found = ["a text of one's own"]
    else:
        rows, published = count_rows(path), corpus.rows[split]
        name = Path(corpus.files[split][0]).name
        found = [f"{rows:,} rows of text, not {published:,} ({name})"] if rows != published else []
    return found + ([f"{length:,} tokens a sequence, not {LENGTH:,}"] if length != LENGTH else [])


def _check(name: str, *, max_length: int, data_dir: str | None, **_: object) -> None:
    if max_length < 2:
        raise ValueError(f"dataset.max_length is {max_length}: choose 2 or more")
    locate(_KEY, corpus_of("dataset.name", name), "test", data_dir)


def is_one_text(name: str, data_dir: str | None = None) -> bool:
    """Whether a corpus is a single file, whose text is measured and would be trained on as well."""
    if name != "lm/text_file" or data_dir is None:
        return False
    return Path(data_dir).expanduser().is_file()


def _add(name: str) -> None:
    def load(
        *,
        batch_size: int,
        seed: int,
        data_dir: str | None,
        tokenizer: str,
        max_length: int,
        cache_dir: str,
    ) -> Data:
        """Blocks of ``max_length`` tokens; the rest of the text is left out."""
        corpus, words = CORPORA[name], load_tokenizer(tokenizer)

        def split(which: Split, seed: int | None) -> Blocks:
            path = fetched(_KEY, corpus, which, data_dir)
            settings = {"corpus": name, "split": which, "length": max_length}
            tokens = cached(
                *(cache_dir, words, [path], settings),
                lambda: from_lists(
                    {"input_ids": blocks_of(corpus, which, path, words, max_length)}, None
                ),
            )
            return Blocks(tokens.columns["input_ids"].view(-1, max_length), batch_size, seed)

        test: Batches = split("test", None)
        path = fetched(_KEY, corpus, "test", data_dir)
        task = LanguageModelling(departures=tuple(departures(corpus, "test", path, max_length)))
        train = Later(partial(split, "train", seed))
        return Data(train, test, len(words), task=task, text=Text(len(words), max_length))

    known: KnownBy = "place" if CORPORA[name].repository is None else "files"
    dataset(f"lm/{name}", check=partial(_check, name), head="language_modelling", known_by=known)(
        load
    )


for _name in CORPORA:
    _add(_name)
