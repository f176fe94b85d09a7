"""Corpora for calibration and perplexity: published texts, or the user's own, as rows of text."""

import gzip
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seven_exp.datasets.tokens import read_text
from seven_exp.messages import nearest, one_line

log = logging.getLogger(__name__)

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Corpus:
    """A corpus, and how the published evaluations read it.

    Attributes:
        repository: Id of the data set on the hub; None: the user's own text.
        files: Split -> its file in the repository, and the names that a local copy may have.
        rows: Split -> number of rows of the published file.
        joiner: Text between two rows when the test split is tokenised as one text.
        first: Number of rows of the test split that are read; None: all.
        blocks: Largest number of blocks that are evaluated; None: all.
        tokens: Of the published test split, with Llama 2's tokenizer; None: unknown.
        by_document: Whether calibration draws windows from random rows; otherwise from the whole
            training text.
    """

    repository: str | None
    files: Mapping[Split, Sequence[str]] = field(default_factory=dict)
    rows: Mapping[Split, int] = field(default_factory=dict)
    joiner: str = "\n\n"
    first: int | None = None
    blocks: int | None = None
    tokens: int | None = None
    by_document: bool = False


CORPORA = {
    "wikitext2": Corpus(
        "Salesforce/wikitext",
        {
            "train": ("wikitext-2-raw-v1/train-00000-of-00001.parquet", "wiki.train.raw"),
            "test": ("wikitext-2-raw-v1/test-00000-of-00001.parquet", "wiki.test.raw"),
        },
        {"train": 36_718, "test": 4_358},
        tokens=341_469,
    ),
    "c4": Corpus(
        "allenai/c4",
        {
            "train": ("en/c4-train.00000-of-01024.json.gz",),
            "test": ("en/c4-validation.00000-of-00008.json.gz",),
        },
        {"train": 356_317, "test": 45_576},
        joiner=" ",
        first=1100,
        blocks=256,
        by_document=True,
    ),
    "text_file": Corpus(None, {"train": ("train.txt",), "test": ("test.txt",)}),
}
"""Name -> corpus. The protocol is that of the public code of SparseGPT and Wanda (Frantar and
Alistarh, arXiv 2301.00774; Sun et al., arXiv 2306.11695)."""


def corpus_of(key: str, name: str) -> Corpus:
    """A corpus by name.

    Raises:
        ValueError: There is none; the message names the key and the nearest valid choice.
    """
    if name not in CORPORA:
        raise ValueError(f"{key} is '{name}': {nearest(name, CORPORA)}")
    return CORPORA[name]


def locate(key: str, corpus: Corpus, split: Split, data_dir: str | None) -> Path | None:
    """The local file of a split; None: it is on the hub.

    Args:
        key: Config key of ``data_dir``.
        corpus: A corpus.
        split: One of its splits.
        data_dir: The folder that holds the file, at any depth, or the user's own text file; None:
            the hub.

    Raises:
        ValueError: There is no such file.
    """
    if data_dir is None:
        if corpus.repository is None:
            raise ValueError(f"{key} is None: give a text file, {key}=PATH")
        return None
    place = Path(data_dir).expanduser()
    if corpus.repository is None and place.is_file():
        return place
    names = [Path(name).name for name in corpus.files[split]]
    for name in names:
        for found in sorted(place.rglob(name)):
            return found
    wanted = f"give the folder of {corpus.repository}'s files, or null to download them"
    if corpus.repository is None:
        wanted = "give a text file, or a folder with train.txt and test.txt"
    raise ValueError(f"{key} is '{data_dir}': it holds no {' or '.join(names)}; {wanted}")


def fetched(key: str, corpus: Corpus, split: Split, data_dir: str | None) -> Path:
    """The file of a split, downloaded from the hub and cached there if no folder is given.

    Raises:
        ValueError: There is no such file, or it can't be downloaded.
    """
    path = locate(key, corpus, split, data_dir)
    if path is not None:
        return path
    from huggingface_hub import hf_hub_download

    assert corpus.repository is not None
    name = corpus.files[split][0]
    try:
        return Path(hf_hub_download(corpus.repository, name, repo_type="dataset"))
    except Exception as error:
        reason = one_line(error)
        raise ValueError(
            f"{key} is None: {name} of {corpus.repository} is not in the cache and can't be "
            f"downloaded ({reason:.120}): give the folder that holds it, {key}=PATH"
        ) from error


def read_rows(key: str, path: Path) -> list[str]:
    """The rows of a file: Parquet or JSON lines with a column "text", WikiText's own, or a text.

    WikiText's files have one row per line, with its line break; blank lines are empty rows. Any
    other text is one row.

    Raises:
        ValueError: The file is broken or empty, or a package to read it is not installed.
    """
    try:
        rows = _rows(key, path)
    except (OSError, EOFError, json.JSONDecodeError, UnicodeError, KeyError, TypeError) as error:
        reason = one_line(error)
        raise ValueError(f"{key}: {path} can't be read as texts: {reason:.120}") from error
    except ImportError as error:
        raise ValueError(f"{key}: {path} needs pyarrow: uv sync --extra lm") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str):
            raise ValueError(f"{key}: {path}: row {number:,} holds no text: leave it out")
    if not any(rows):
        raise ValueError(f"{key}: {path} holds no text")
    return rows


def _rows(key: str, path: Path) -> list[str]:
    if path.suffix == ".parquet":
        from pyarrow import ArrowInvalid, parquet

        try:
            table: Any = parquet.read_table(path, columns=["text"])
        except ArrowInvalid as error:
            raise OSError(str(error)) from error
        rows: list[str] = table.column("text").to_pylist()
        return rows
    if path.name.endswith(".json.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line)["text"] for line in file]
    text = read_text(path, key=key)
    if path.suffix == ".raw":
        lines = text.split("\n")
        ended = lines[:-1] if lines[-1] == "" else lines
        return [f"{line}\n" if line.strip() else "" for line in ended]
    if "\r\n" in text:
        log.warning("%s: %s has Windows line ends, which count as tokens: convert it", key, path)
    return [text]


def count_rows(path: Path) -> int:
    """Number of rows of a published corpus's file."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return sum(1 for _ in file)
