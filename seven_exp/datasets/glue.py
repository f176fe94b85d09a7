"""GLUE's nine tasks (Wang et al., arXiv 1804.07461), official files; dev is evaluated."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

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
    read_text,
)
from seven_exp.tasks import Classification, Regression, Task

log = logging.getLogger(__name__)

URL = "https://dl.fbaipublicfiles.com/glue/data"
MRPC_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt"

_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class _Glue:
    """The properties of a task.

    Attributes:
        folder: Folder of its files.
        archive: Its name among the publisher's archives.
        texts: One column or two.
        label: The label's column.
        labels: The classes, in the order of their indices; none for a number.
        task: Loss and metrics.
        train_size: Official number of training examples.
        dev: Files for evaluation, by the suffix of their metrics' names.
        columns: Columns of a file without a header.
        ragged: Whether the official file has broken lines, which are skipped.
    """

    folder: str
    archive: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    task: Task
    train_size: int
    dev: tuple[tuple[str, str], ...] = (("", "dev.tsv"),)
    columns: tuple[str, ...] | None = None
    ragged: bool = False


_PAIR = ("sentence1", "sentence2")
_F1 = Classification(extra=("f1",))
_PLAIN = Classification()

TASKS = {
    "cola": _Glue(
        *("CoLA", "CoLA", ("sentence",), "label", ("0", "1")),
        *(Classification("matthews", ("matthews",)), 8551),
        columns=("source", "label", "mark", "sentence"),
    ),
    "sst2": _Glue("SST-2", "SST-2", ("sentence",), "label", ("0", "1"), _PLAIN, 67349),
    "mrpc": _Glue("MRPC", "MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1"), _F1, 3668),
    "stsb": _Glue("STS-B", "STS-B", _PAIR, "score", (), Regression(), 5749),
    "qqp": _Glue(
        *("QQP", "QQP-clean", ("question1", "question2"), "is_duplicate", ("0", "1"), _F1, 363846),
        ragged=True,
    ),
    "mnli": _Glue(
        *("MNLI", "MNLI", _PAIR, "gold_label", ("contradiction", "entailment", "neutral")),
        *(_PLAIN, 392702),
        dev=(("", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv")),
    ),
    "qnli": _Glue("QNLI", "QNLIv2", ("question", "sentence"), "label", _ENTAILMENT, _PLAIN, 104743),
    "rte": _Glue("RTE", "RTE", _PAIR, "label", _ENTAILMENT, _PLAIN, 2490),
    "wnli": _Glue("WNLI", "WNLI", _PAIR, "label", ("0", "1"), _PLAIN, 635),
}


def read_tsv(path: Path, spec: _Glue) -> tuple[list[list[str]], list[float]]:
    """Read the texts, one list per column, and the labels: class indices, or numbers.

    Raises:
        ValueError: The encoding is not UTF-8, or a column or label is invalid; the
            message names file and line.
    """
    where = f"dataset.data_dir: {path}"
    lines = read_text(path, "utf-8-sig").replace("\r\n", "\n").split("\n")
    header = spec.columns or tuple(lines[0].split("\t"))
    wanted = (*spec.texts, spec.label)
    for column in wanted:
        if column not in header:
            raise ValueError(f"{where} has no column '{column}': it has {', '.join(header)}")
    places = [header.index(column) for column in wanted]
    texts: list[list[str]] = [[] for _ in spec.texts]
    labels: list[float] = []
    broken = 0
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and spec.columns is None):
            continue
        cells = line.split("\t")
        if len(cells) <= max(places):
            if not spec.ragged:
                raise ValueError(
                    f"{where}, line {number}: {len(cells)} columns, at least {max(places) + 1} "
                    "expected"
                )
            broken += 1
            continue
        *row, answer = (cells[place] for place in places)
        labels.append(_label(answer, spec, f"{where}, line {number}"))
        for column_texts, text in zip(texts, row, strict=True):
            column_texts.append(text)
    if not labels:
        raise ValueError(f"{where} has no examples")
    if broken:
        log.info("%s: %d broken lines left out", path, broken)
    return texts, labels


def _label(text: str, spec: _Glue, where: str) -> float:
    if spec.labels:
        if text not in spec.labels:
            raise ValueError(f"{where}: label '{text}': it must be one of {', '.join(spec.labels)}")
        return spec.labels.index(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 5:
        raise ValueError(f"{where}: score '{text}': it must be a number from 0 to 5")
    return value


def _tokenize(path: Path, spec: _Glue, tokenizer: Any, max_length: int) -> Tokens:
    texts, labels = read_tsv(path, spec)
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    kind = torch.int64 if spec.labels else torch.float32
    return from_lists(model_columns(encoded), torch.tensor(labels, dtype=kind))


def _fetch(spec: _Glue, folder: Path) -> None:
    names = ["train.tsv", *(file for _, file in spec.dev)]
    if spec.folder == "MRPC":
        _fetch_mrpc(folder)
        return
    files = [(f"{spec.folder}/{name}", f"{spec.folder}/{name}") for name in names]
    download.unzip(f"{URL}/{spec.archive}.zip", folder, files)


def _fetch_mrpc(folder: Path) -> None:
    """MRPC is published as one file; a list of pairs of ids says which lines are dev."""
    lines = download.read_url(MRPC_URL).decode("utf-8-sig").splitlines()
    ids = download.read_url(f"{URL}/mrpc_dev_ids.tsv").decode("utf-8").splitlines()
    of_dev = {tuple(line.split("\t")) for line in ids}
    header, *rows = lines
    dev = [row for row in rows if tuple(row.split("\t")[1:3]) in of_dev]
    train = [row for row in rows if tuple(row.split("\t")[1:3]) not in of_dev]
    for name, chosen in (("train.tsv", train), ("dev.tsv", dev)):
        text = "\n".join([header, *chosen]) + "\n"
        download.write(folder / "MRPC" / name, text.encode("utf-8"))


def _files(spec: _Glue) -> list[str]:
    return [f"{spec.folder}/{name}" for name in ("train.tsv", *(file for _, file in spec.dev))]


def check_length(*, max_length: int, **_: object) -> None:
    """Raise ValueError unless a sequence has room for a word and the special tokens."""
    if max_length < 8:
        raise ValueError(f"dataset.max_length is {max_length}: choose 8 or more")


def _shape(spec: _Glue, **_: object) -> dict[str, int]:
    return {"num_classes": len(spec.labels) or 1}


def _load(spec: _Glue) -> Callable[..., Data]:
    def load(
        *,
        batch_size: int,
        seed: int,
        data_dir: str,
        tokenizer: str,
        max_length: int,
        cache_dir: str,
    ) -> Data:
        """Both splits; the longer text of a pair is truncated."""
        train, *dev = download.ensure(data_dir, _files(spec), partial(_fetch, spec))
        words = load_tokenizer(tokenizer)

        def split(path: Path, seed: int | None) -> TokenBatches:
            settings = {"labels": spec.labels, "texts": spec.texts, "max_length": max_length}
            build = partial(_tokenize, path, spec, words, max_length)
            tokens = cached(cache_dir, words, [path], settings, build)
            return TokenBatches(tokens, padding(words), batch_size, seed)

        first, *others = (split(path, None) for path in dev)
        names: Sequence[str] = [name for name, _ in spec.dev[1:]]
        return Data(
            split(train, seed),
            first,
            len(spec.labels) or 1,
            task=spec.task,
            text=Text(len(words), max_length, padding(words)),
            more=dict(zip(names, others, strict=True)),
        )

    return load


for _name, _spec in TASKS.items():
    dataset(
        f"glue/{_name}",
        train_size=_spec.train_size,
        check=check_length,
        head="classification",
        known_by="name",
        shape=partial(_shape, _spec),
    )(_load(_spec))
