"""A cache on disk for tensors that take long to compute."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seven_exp.files.atomic import disk_errors, replacing


def cached_tensors(
    folder: Path, key: str, build: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The result of ``build``, or its cached copy if that is intact.

    Args:
        folder: Folder of the cache; created if needed.
        key: Hash of everything that determines the result.
        build: Makes the tensors.

    Raises:
        OSError: They can't be written.
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
