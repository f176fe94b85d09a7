"""Text as tokens: tokenised once, cached on disk, padded per batch, similar lengths together."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seven_exp.datasets.batches import batches_an_epoch, epoch_seed
from seven_exp.datasets.cache import cached_tensors
from seven_exp.files.hashing import hash_of
from seven_exp.models.hub import from_source
from seven_exp.tasks import Batch

_BUCKET = 50
"""Number of batches whose examples are sorted by length together; their order stays random."""

_VERSION = 1


@dataclass(frozen=True)
class Tokens:
    """Concatenated sequences of tokens.

    Attributes:
        columns: Argument of the model -> its values of all sequences, int32 of shape (total,).
        lengths: int64, (n,).
        targets: First dimension n; or one row per sequence, like `columns`; ``None``: the tokens.
    """

    columns: Mapping[str, Tensor]
    lengths: Tensor
    targets: Tensor | None

    def __len__(self) -> int:
        return len(self.lengths)

    def only(self, chosen: Tensor) -> "Tokens":
        """Some of the sequences; ``chosen`` is bool, (n,)."""
        flat = chosen.repeat_interleave(self.lengths)
        columns = {name: values[flat] for name, values in self.columns.items()}
        targets = None if self.targets is None else self.targets[chosen]
        return Tokens(columns, self.lengths[chosen], targets)


@dataclass(frozen=True)
class TokenBatches:
    """Batches padded to their own longest sequence.

    Attributes:
        tokens: The split.
        pad: The padding token.
        batch_size: Sequences per batch.
        seed: None: all, by length (evaluation); a number shuffles, keeps similar lengths
            together, and drops the last, smaller batch if there is a full one.
        owners: The example that each sequence is a window of, int64 (n,), ascending; None: each is
            an example.
    """

    tokens: Tokens
    pad: int
    batch_size: int
    seed: int | None = None
    owners: Tensor | None = None

    @property
    def examples(self) -> int:
        """Number of examples in the split."""
        return len(self.tokens) if self.owners is None else int(self._examples[-1]) + 1

    @property
    def _examples(self) -> Tensor:
        """The example that each sequence belongs to, numbered from 0 on."""
        if self.owners is None:
            return torch.arange(len(self.tokens))
        return (self.owners.diff(prepend=self.owners[:1]) != 0).cumsum(0)

    @property
    def strata(self) -> Tensor | None:
        """The classes; one for all if the targets are numbers; None for windows of a text."""
        targets = self.tokens.targets
        if targets is None or self.owners is not None:
            return None
        return torch.zeros(len(targets)).long() if targets.is_floating_point() else targets

    def divided(self, held_out: Tensor) -> tuple["TokenBatches", "TokenBatches"]:
        """The other examples for training; and these for evaluation, by length."""
        chosen = torch.isin(self._examples, held_out)

        def part(chosen: Tensor, seed: int | None) -> "TokenBatches":
            own = None if self.owners is None else self.owners[chosen]
            return replace(self, tokens=self.tokens.only(chosen), seed=seed, owners=own)

        return part(~chosen, self.seed), part(chosen, None)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return batches_an_epoch(len(self.tokens), self.batch_size, self.seed)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``index`` from number ``start`` on, the same in every call."""
        starts = self.tokens.lengths.cumsum(0) - self.tokens.lengths
        for chosen in self._order(index)[start:]:
            yield self._batch(chosen, starts)

    def _order(self, index: int) -> list[Tensor]:
        lengths, size = self.tokens.lengths, self.batch_size
        if self.seed is None:
            return list(torch.split(lengths.argsort(stable=True), size))
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, index))
        order = torch.randperm(len(lengths), generator=generator)[: len(self) * size]
        batches = [
            batch
            for bucket in torch.split(order, _BUCKET * size)
            for batch in torch.split(bucket[lengths[bucket].argsort(stable=True)], size)
        ]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def _batch(self, chosen: Tensor, starts: Tensor) -> Batch:
        lengths = self.tokens.lengths[chosen]
        places = torch.arange(int(lengths.max()))
        real = places < lengths[:, None]
        flat = torch.where(real, starts[chosen, None] + places, 0)
        inputs = {
            name: values[flat].long().masked_fill(~real, self.pad if name == "input_ids" else 0)
            for name, values in self.tokens.columns.items()
        }
        inputs["attention_mask"] = real.long()
        if self.tokens.targets is None:
            return inputs, inputs["input_ids"].masked_fill(~real, -100)
        return inputs, self.tokens.targets[chosen]


def read_text(path: Path, encoding: str = "utf-8", key: str = "dataset.data_dir") -> str:
    """A file's text.

    Args:
        path: The file.
        encoding: A variant of UTF-8.
        key: Config key of its place, for messages.

    Raises:
        ValueError: It is not UTF-8; the message names the byte.
    """
    try:
        return path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is not UTF-8 (byte {error.start}): convert it") from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, by the model's name.

    Raises:
        ValueError: It can't be loaded, or the model has none.
    """
    from transformers import AutoTokenizer

    tokenizer = from_source(AutoTokenizer, "dataset.tokenizer", name)
    if not tokenizer.is_fast:
        raise ValueError(f"dataset.tokenizer is '{name}': it has no fast tokenizer")
    return tokenizer


def padding(tokenizer: Any) -> int:
    """The padding token; GPT-2 has none and uses its end-of-text token."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def cached(
    folder: str,
    tokenizer: Any,
    files: Sequence[Path],
    settings: Mapping[str, Any],
    build: Callable[[], Tokens],
) -> Tokens:
    """The result of ``build``, or its cached copy.

    Args:
        folder: Folder of the cache.
        tokenizer: The key covers all of it.
        files: Input files; the key covers their content.
        settings: Everything else that determines the result.
        build: Reads and tokenises.
    """
    identity = json.loads(tokenizer.backend_tokenizer.to_str())
    # These change with each call, and do not belong to the tokenizer.
    identity.update(truncation=None, padding=None)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    key.update(json.dumps([_VERSION, dict(settings)], sort_keys=True).encode())
    for path in files:
        key.update(bytes.fromhex(hash_of(path)))

    def state_of() -> dict[str, Tensor]:
        tokens = build()
        state = {f"column.{name}": values for name, values in tokens.columns.items()}
        state["lengths"] = tokens.lengths
        if tokens.targets is not None:
            state["targets"] = tokens.targets
        return state

    state = cached_tensors(Path(folder) / "tokens", key.hexdigest()[:24], state_of)
    columns = {k.removeprefix("column."): v for k, v in state.items() if k.startswith("column.")}
    return Tokens(columns, state["lengths"], state.get("targets"))


def from_lists(columns: Mapping[str, Sequence[Sequence[int]]], targets: Tensor | None) -> Tokens:
    """Sequences from lists, one per sequence and column."""
    lengths = torch.tensor([len(ids) for ids in columns["input_ids"]], dtype=torch.int64)
    flat = {
        name: torch.tensor([i for ids in lists for i in ids], dtype=torch.int32)
        for name, lists in columns.items()
    }
    return Tokens(flat, lengths, targets)


def model_columns(encoded: Mapping[str, Any]) -> dict[str, Sequence[Sequence[int]]]:
    """The model's arguments from a tokenizer's output, without padding."""
    return {k: encoded[k] for k in ("input_ids", "token_type_ids") if k in encoded}
