"""The files of a run besides its record: masks and models, with their checksums."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from seven_exp.files.atomic import disk_errors, replacing, replacing_folder
from seven_exp.files.hashing import hash_of
from seven_exp.messages import one_line

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
"""Version of the schema of results.json."""

MASKS, FINAL = "masks.safetensors", "checkpoints/final.safetensors"
"""Files of a run whose SHA-256 its record holds."""

FOLDER = "model"
"""Folder of a language model that was pruned as it is, in transformers' format."""

UNFINISHED = "model.partial"
"""Folder of such a model's finished blocks, until all are."""


def save_masks(path: Path, masks: Mapping[str, "Tensor"]) -> None:
    """Write masks as one bit per weight, with each shape in the file's metadata.

    Raises:
        OSError: The file can't be written.
    """
    from safetensors.torch import save_file

    from seven_exp.pruning import pack_bits

    packed = {name: pack_bits(mask.cpu()) for name, mask in masks.items()}
    shapes = {name: json.dumps(list(mask.shape)) for name, mask in masks.items()}
    with replacing(path) as partial, disk_errors():
        save_file(packed, partial, metadata=shapes)


def load_masks(path: Path) -> "dict[str, Tensor]":
    """Read masks that `save_masks` wrote: parameter name -> bool tensor on the CPU.

    Raises:
        ValueError: The file is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    from seven_exp.pruning import unpack_bits

    try:
        with safe_open(path, framework="pt") as file:
            shapes = file.metadata() or {}
            return {
                name: unpack_bits(file.get_tensor(name), json.loads(shape))
                for name, shape in shapes.items()
            }
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{path}' can't be read: {one_line(error)}") from error


def save_model(path: Path, weights: Mapping[str, "Tensor"]) -> None:
    """Write a state dict as safetensors, with pruned weights zero and shared tensors once.

    Raises:
        OSError: The file can't be written.
    """
    from safetensors.torch import save_model as save

    # It reads only a model's state dict, and removes names from it.
    model: Any = SimpleNamespace(state_dict=lambda: dict(weights))
    with replacing(path) as partial, disk_errors():
        save(model, str(partial))


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write tensors as transformers does.

    Raises:
        OSError: The file can't be written.
    """
    from safetensors.torch import save_file

    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as partial, disk_errors():
        save_file(kept, partial, metadata={"format": "pt"})


def save_folder(path: Path, model: Any, weights: Mapping[str, "Tensor"], tokenizer: str) -> None:
    """Write a model of transformers as a folder for its ``from_pretrained``.

    Args:
        path: The folder; it is complete or absent.
        model: The model.
        weights: Its state dict, pruned weights zero.
        tokenizer: Name of the model whose tokenizer belongs to it.

    Raises:
        OSError: The folder can't be written.
    """
    from seven_exp.datasets.tokens import load_tokenizer

    with replacing_folder(path) as partial, disk_errors():
        model.save_pretrained(partial, state_dict=weights)
        load_tokenizer(tokenizer).save_pretrained(partial)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the masks and the model's files in a run's folder, as far as they were saved.

    Raises:
        OSError: A file can't be read.
    """
    names = [MASKS, FINAL]
    names += sorted(f"{FOLDER}/{path.name}" for path in folder.glob(f"{FOLDER}/*.safetensors"))
    return {name: hash_of(folder / name) for name in names if (folder / name).is_file()}
