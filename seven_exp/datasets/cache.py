"""Tensors that take long to make, kept on disk."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seven_exp.files.atomic import disk_errors, replacing


def cached_tensors(
    folder: Path, key: str, build: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What ``build`` makes, from the disk if it was kept there whole.

    Args:
        folder: Of the cache; made if need be.
        key: All that decides the result, hashed.
        build: Makes the tensors.

    Raises:
        OSError: They can't be kept.
    """
    path = folder.expanduser() / f"{key}.safetensors"
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        tensors = build()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, disk_errors():
        save_file(tensors, partial)
    return tensors
