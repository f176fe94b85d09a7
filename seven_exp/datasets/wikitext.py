"""WikiText-2 (Merity et al., arXiv 1609.07843) in blocks of tokens; perplexity is per token."""

from functools import partial
from pathlib import Path
from typing import Any

from seven_exp.datasets import download
from seven_exp.datasets.batches import Data, Text
from seven_exp.datasets.registry import dataset
from seven_exp.datasets.tokens import (
    TokenBatches,
    Tokens,
    cached,
    from_lists,
    load_tokenizer,
    padding,
    read_text,
)
from seven_exp.tasks import LanguageModelling

URL = "https://wikitext.smerity.com/wikitext-2-v1.zip"

_FILES = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")


def _tokenize(path: Path, tokenizer: Any, max_length: int) -> Tokens:
    text = read_text(path)
    # The whole text is longer than any model reads, so it is split into blocks.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ValueError(f"dataset.data_dir: {path} has no examples")
    blocks = [ids[i : i + max_length] for i in range(0, len(ids) - 1, max_length)]
    return from_lists({"input_ids": blocks}, None)


def _fetch(folder: Path) -> None:
    download.unzip(URL, folder, [(f"wikitext-2/{name}", name) for name in _FILES])


def _check(*, max_length: int, **_: object) -> None:
    if max_length < 2:
        raise ValueError(f"dataset.max_length is {max_length}: choose 2 or more")


@dataset("wikitext2", check=_check, head="language_modelling", known_by="name")
def wikitext2(
    *,
    batch_size: int,
    seed: int,
    data_dir: str,
    tokenizer: str,
    max_length: int,
    cache_dir: str,
) -> Data:
    """Independent blocks of ``max_length`` tokens; all three splits are official."""
    paths = download.ensure(data_dir, _FILES, _fetch)
    words = load_tokenizer(tokenizer)

    def split(path: Path, seed: int | None) -> TokenBatches:
        build = partial(_tokenize, path, words, max_length)
        tokens = cached(cache_dir, words, [path], {"block": max_length}, build)
        return TokenBatches(tokens, padding(words), batch_size, seed)

    train, valid, test = paths
    return Data(
        split(train, seed),
        split(test, None),
        len(words),
        task=LanguageModelling(
            departures=("WikiText-2 without its rare words, validation split", "all of its blocks")
        ),
        text=Text(len(words), max_length),
        validation=split(valid, None),
    )
