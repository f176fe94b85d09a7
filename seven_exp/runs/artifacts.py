"""The files of a run besides its record: masks and models, with their checksums."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from seven_exp.files.atomic import disk_errors, replacing
from seven_exp.files.hashing import hash_of

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
"""Version of the schema of results.json."""

MASKS, FINAL = "masks.safetensors", "checkpoints/final.safetensors"
"""Files of a run whose SHA-256 its record holds."""


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
        raise ValueError(f"'{path}' can't be read: {' '.join(str(error).split())}") from error


def save_model(path: Path, model: "nn.Module") -> None:
    """Write the state dict as safetensors, with pruned weights zero and shared tensors once.

    Raises:
        OSError: The file can't be written.
    """
    from safetensors.torch import save_model as save

    with replacing(path) as partial, disk_errors():
        save(model, str(partial))


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the masks and the final model in a run's folder, as far as they were saved.

    Raises:
        OSError: A file can't be read.
    """
    return {name: hash_of(folder / name) for name in (MASKS, FINAL) if (folder / name).is_file()}
