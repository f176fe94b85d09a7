"""SQuAD v1.1 (Rajpurkar et al., arXiv 1606.05250) from its official JSON; dev is evaluated."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seven_exp.datasets import download
from seven_exp.datasets.batches import Data, Text
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
from seven_exp.tasks import Spans

URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset"

_FILES = ("train-v1.1.json", "dev-v1.1.json")


@dataclass(frozen=True)
class Question:
    """A question on a paragraph; answers are (text, first character)."""

    text: str
    context: str
    answers: tuple[tuple[str, int], ...]


def read_squad(path: Path) -> list[Question]:
    """Read all questions of a file.

    Raises:
        ValueError: It is not SQuAD's JSON, or an answer has the wrong position.
    """
    where = f"dataset.data_dir: {path}"
    try:
        questions = [
            Question(
                question["question"],
                paragraph["context"],
                tuple((a["text"], int(a["answer_start"])) for a in question["answers"]),
            )
            for article in json.loads(path.read_bytes())["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is not in SQuAD v1.1's format: {error!r}") from error
    for question in questions:
        if not question.answers:
            raise ValueError(f"{where}: no answer to '{question.text}'; v2.0 has such, v1.1 not")
        for text, start in question.answers:
            if question.context[start : start + len(text)] != text:
                raise ValueError(f"{where}: '{text}' is not at character {start} of its context")
    if not questions:
        raise ValueError(f"{where} has no examples")
    return questions


def _tokenize(path: Path, tokenizer: Any, max_length: int, stride: int) -> Tokens:
    questions = read_squad(path)
    encoded = tokenizer(
        [q.text.strip() for q in questions],
        [q.context for q in questions],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    targets = []
    for window, owner in enumerate(encoded["overflow_to_sample_mapping"]):
        parts = encoded.sequence_ids(window)
        first = parts.index(1)
        last = len(parts) - 1 - parts[::-1].index(1)
        places = encoded["offset_mapping"][window]
        text, start = questions[owner].answers[0]
        span = _span(places, first, last, start, start + len(text))
        targets.append((*span, first, last, window, owner))
    columns = model_columns(encoded) | {
        name: [[place[i] for place in places] for places in encoded["offset_mapping"]]
        for i, name in enumerate(("from", "to"))
    }
    return from_lists(columns, torch.tensor(targets))


def _span(places: Any, first: int, last: int, start: int, end: int) -> tuple[int, int]:
    """Tokens of an answer; the first token of the window if it does not hold the whole answer."""
    inside = [i for i in range(first, last + 1) if places[i][0] < end and places[i][1] > start]
    if not inside or places[inside[0]][0] > start or places[inside[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]


class _Windows(Sequence[tuple[int, list[tuple[int, int]]]]):
    """Question and tokens' positions of each window, read from tensors: a list would be large."""

    def __init__(self, parts: Sequence[Tokens], owners: Tensor) -> None:
        self._owners = owners
        lengths = torch.cat([part.lengths for part in parts])
        self._ends = lengths.cumsum(0)
        self._starts = self._ends - lengths
        self._places = torch.stack(
            [torch.cat([part.columns[name] for part in parts]) for name in ("from", "to")], 1
        )

    def __len__(self) -> int:
        return len(self._owners)

    def __getitem__(self, window: Any) -> Any:
        places = self._places[self._starts[window] : self._ends[window]].tolist()
        return int(self._owners[window]), list(map(tuple, places))


def _fetch(folder: Path) -> None:
    for name in _FILES:
        download.write(folder / name, download.read_url(f"{URL}/{name}"))


def _check(*, max_length: int, stride: int, **_: object) -> None:
    if max_length < 64:
        raise ValueError(f"dataset.max_length is {max_length}: choose 64 or more")
    if not 0 <= stride < max_length // 2:
        raise ValueError(f"dataset.stride is {stride}: choose from 0 up to {max_length // 2 - 1}")


def _shape(**_: object) -> dict[str, int]:
    return {"num_classes": 2}


@dataset("squad", train_size=87599, check=_check, head="spans", known_by="name", shape=_shape)
def squad(
    *,
    batch_size: int,
    seed: int,
    data_dir: str,
    tokenizer: str,
    max_length: int,
    stride: int,
    cache_dir: str,
) -> Data:
    """Contexts longer than ``max_length`` are split into windows that share ``stride`` tokens."""
    paths = download.ensure(data_dir, _FILES, _fetch)
    words = load_tokenizer(tokenizer)

    def read(path: Path) -> Tokens:
        settings = {"squad": 1, "max_length": max_length, "stride": stride}
        build = partial(_tokenize, path, words, max_length, stride)
        try:
            return cached(cache_dir, words, [path], settings, build)
        except Exception as error:
            if "too short to respect" in str(error) or "Truncation error" in str(error):
                raise ValueError(
                    f"dataset.max_length is {max_length}: a question leaves no room for its context"
                ) from error
            raise

    def batches(tokens: Tokens, seed: int | None, before: int) -> TokenBatches:
        assert tokens.targets is not None
        columns = {k: v for k, v in tokens.columns.items() if k not in ("from", "to")}
        targets = tokens.targets[:, :5].clone()
        targets[:, 4] += before
        kept = replace(tokens, columns=columns, targets=targets)
        return TokenBatches(kept, padding(words), batch_size, seed, owners=tokens.targets[:, 5])

    # The windows of dev are numbered first, then those of train, whose end may be held out.
    train, dev = map(read, paths)
    of_train, of_dev = map(read_squad, paths)
    assert dev.targets is not None
    assert train.targets is not None
    owners = torch.cat([dev.targets[:, 5], train.targets[:, 5] + len(of_dev)])
    task = Spans(
        windows=_Windows([dev, train], owners),
        contexts=[q.context for q in of_dev + of_train],
        answers=[[text for text, _ in q.answers] for q in of_dev + of_train],
    )
    return Data(
        batches(train, seed, len(dev)),
        batches(dev, None, 0),
        2,
        task=task,
        text=Text(len(words), max_length),
    )
