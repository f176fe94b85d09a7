"""Files that are either whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; it takes ``path``'s place once the block is done without an error.

    The bytes are on disk before the name changes, so that a crash leaves the old file or the new.

    Raises:
        OSError: The folder can't be written.
    """
    # In a folder of its own: safetensors has files beside the one that it is told to write.
    with _beside(path) as folder:
        partial = folder / path.name
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes ``path``'s place once the block is done without an error.

    Raises:
        OSError: The folder can't be written.
    """
    with _beside(path) as folder:
        yield folder
        shutil.rmtree(path, ignore_errors=True)
        folder.replace(path)


def clear_partial(folder: Path) -> None:
    """Remove what processes that were killed had begun to write into the folder."""
    for begun in folder.glob(".*.partial"):
        shutil.rmtree(begun, ignore_errors=True)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """An empty folder on the same disk as ``path``, which is gone after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns safetensors' way to tell of a full disk into the ordinary one.

    Raises:
        OSError: safetensors could not write.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
