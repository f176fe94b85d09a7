"""Atomic writes: a file is either complete or absent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; it replaces ``path`` when the block ends without an error.

    The bytes are on disk before the name changes, so a crash leaves the old file or the new one.

    Raises:
        OSError: The folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because some writers choose the format by it.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    # A killed process with the same number may have left a hard link to a file that stays.
    partial.unlink(missing_ok=True)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces ``path`` when the block ends without an error.

    Raises:
        OSError: The folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def clear_partial(folder: Path) -> None:
    """Remove the temporary files and folders of killed processes, those of safetensors included."""
    for pattern in (".*.partial*", ".tmp*"):
        for partial in folder.glob(pattern):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns safetensors' error for a full disk into an OSError.

    Raises:
        OSError: safetensors could not write.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
