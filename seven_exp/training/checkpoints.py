"""Checkpoints: a training's whole state in one verified file; loading executes no code."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seven_exp.files.atomic import clear_partial, disk_errors, replacing
from seven_exp.messages import one_line

log = logging.getLogger(__name__)

FORMAT = 1


class BrokenCheckpointError(ValueError):
    """The file is not a checkpoint, or not the one that was written."""


class Checkpoints:
    """The latest checkpoints of one run, in their own folder.

    Args:
        folder: Created when the first checkpoint is saved.
        run_hash: The run's identity; checkpoints of other runs are ignored.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: Path, run_hash: str, keep: int) -> None:
        self.folder, self.run_hash, self.keep = folder, run_hash, keep

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after ``step`` steps, then remove the oldest beyond `keep`.

        Raises:
            OSError: It can't be written; earlier checkpoints are kept.
        """
        path = self.folder / f"step-{step:08d}.safetensors"
        write_checkpoint(path, {"run_hash": self.run_hash, "step": step, **state})
        for old in self._paths()[self.keep :]:
            old.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """The newest intact state of this run; None if there is none.

        A broken checkpoint is named in a warning and removed, and the previous one is used.
        """
        clear_partial(self.folder)
        for path in self._paths():
            try:
                state = read_checkpoint(path)
            except BrokenCheckpointError as error:
                log.warning("%s is broken (%s): continuing from the previous one", path, error)
                path.unlink(missing_ok=True)
                continue
            if state["run_hash"] == self.run_hash:
                return state
        return None

    def clear(self) -> None:
        """Remove all checkpoints, and the folder if nothing else is in it."""
        for path in self._paths():
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write containers of tensors, numbers and strings atomically.

    The tensors are stored by safetensors; the rest goes into its header, as JSON that refers to
    tensors by name. A tensor that occurs twice is written once. The SHA-256 covers both.

    Raises:
        OSError: The file can't be written.
        TypeError: ``state`` holds something else.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps({"format": FORMAT, "state": _packed(state, tensors, {})})
    metadata = {"state": text, "sha256": digest_of(tensors.items(), text)}
    with replacing(path) as partial, disk_errors():
        save_file(tensors, partial, metadata)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, with tensors on the CPU.

    Raises:
        BrokenCheckpointError: The file was truncated or altered, or is not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = metadata["state"]
        written = ((name, tensors[name]) for name in sorted(tensors, key=int))
        if metadata["sha256"] != digest_of(written, text):
            raise BrokenCheckpointError("its contents are not those that were written")
        content = json.loads(text)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BrokenCheckpointError(one_line(error)) from error
    if content["format"] != FORMAT:
        raise BrokenCheckpointError(f"its format is {content['format']}, not {FORMAT}")
    state: dict[str, Any] = _unpacked(content["state"], tensors)
    return state


def _packed(value: Any, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    """JSON for ``value``; its tensors are added to ``tensors``, named 0, 1, 2 and so on."""
    if isinstance(value, Tensor):
        place = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
        if not value.numel() or place not in seen:
            seen[place] = str(len(tensors))
            tensors[seen[place]] = _alone(value)
        return {"tensor": seen[place]}
    if isinstance(value, Mapping):
        items = [[_packed(part, tensors, seen) for part in item] for item in value.items()]
        return {"mapping": items}
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, tensors, seen) for item in value]}
    if isinstance(value, list):
        return [_packed(item, tensors, seen) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint can't hold a {type(value).__name__}")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_unpacked(item, tensors) for item in content)
    return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in content}


def _alone(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares memory with no other written tensor."""
    own = tensor.detach().cpu().contiguous()
    whole = own.untyped_storage().nbytes() == own.nbytes
    return own if whole else own.clone()


def digest_of(tensors: Iterable[tuple[str, Tensor]], text: str = "") -> str:
    """SHA-256 of a text and of tensors' names, types, shapes and bytes, in order."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        # As bytes, because NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
