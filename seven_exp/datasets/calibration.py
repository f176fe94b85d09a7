"""Calibration: sequences drawn at random from a corpus, as the published code draws them."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from seven_exp.datasets.corpora import Corpus, corpus_of, fetched, locate, read_rows
from seven_exp.datasets.perplexity import departures
from seven_exp.datasets.tokens import cached, from_lists, load_tokenizer

SAMPLES = 128
"""Calibration sequences in the published protocol."""

_KEY = "calibration.data_dir"


def draw(
    corpus: Corpus, rows: list[str], tokenizer: Any, samples: int, length: int, seed: int
) -> Iterator[list[int]]:
    """Draw sequences with Python's generator, in the order of the published code.

    C4: a random row until one has more than ``length`` tokens, then a random window of it. Other
    corpora: random windows of all rows joined by a space.

    Args:
        corpus: Says which of the two.
        rows: Of the training split.
        tokenizer: Adds its special tokens to each text.
        samples: Number of sequences.
        length: Tokens of each.
        seed: Of the generator.

    Raises:
        ValueError: No row, or not the whole text, has more than ``length`` tokens.
    """
    generator = random.Random(seed)

    def tokens_of(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
        return ids

    whole = [] if corpus.by_document else tokens_of(" ".join(rows))
    short: set[int] = set()
    for _ in range(samples):
        ids = whole
        while len(ids) <= length:
            if not corpus.by_document or len(short) == len(rows):
                raise ValueError(
                    f"{_KEY}: no {'row' if corpus.by_document else 'text'} has more than "
                    f"calibration.length={length:,} tokens: choose a smaller length, or longer "
                    "texts"
                )
            row = generator.randint(0, len(rows) - 1)
            ids = tokens_of(rows[row])
            if len(ids) <= length:
                short.add(row)
        start = generator.randint(0, len(ids) - length - 1)
        yield ids[start : start + length]


def check_calibration(name: str, *, data_dir: str | None) -> None:
    """Check, without reading it, whether a calibration set exists where the arguments say.

    Raises:
        ValueError: It does not; the message names the key and what is expected.
    """
    locate(_KEY, corpus_of("calibration.name", name), "train", data_dir)


def load_calibration(
    name: str,
    *,
    samples: int,
    length: int,
    data_dir: str | None,
    seed: int,
    tokenizer: str,
    cache_dir: str,
) -> tuple[Tensor, list[str]]:
    """A calibration set, int32 (samples, length); and how it departs from the published protocol.

    Args:
        name: Name of a corpus.
        samples: Number of sequences.
        length: Tokens of each.
        data_dir: Place of the corpus's files; None: the hub.
        seed: Of the draw.
        tokenizer: Name of a model.
        cache_dir: Cache of the tokens.

    Raises:
        ValueError: The corpus can't be read, or its texts are too short.
    """
    corpus, words = corpus_of("calibration.name", name), load_tokenizer(tokenizer)
    path = fetched(_KEY, corpus, "train", data_dir)
    settings = {"calibration": name, "samples": samples, "length": length, "seed": seed}

    def draws() -> Iterator[list[int]]:
        return draw(corpus, read_rows(_KEY, path), words, samples, length, seed)

    tokens = cached(
        *(cache_dir, words, [path], settings),
        lambda: from_lists({"input_ids": list(draws())}, None),
    )
    ids = tokens.columns["input_ids"].view(-1, length)
    return ids, _departures(name, corpus, path, samples, length)


def _departures(name: str, corpus: Corpus, path: Path, samples: int, length: int) -> list[str]:
    found = departures(corpus, "train", path, length)
    if corpus.repository is not None and name != "c4":
        found.insert(0, f"{name}, not c4")
    return found + ([f"{samples} sequences, not {SAMPLES}"] if samples != SAMPLES else [])
