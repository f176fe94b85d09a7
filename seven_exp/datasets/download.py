"""Downloads a data set's files once."""

import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from seven_exp.files.atomic import replacing
from seven_exp.files.locks import held
from seven_exp.messages import one_line


def ensure(data_dir: str, files: Sequence[str], fetch: Callable[[Path], None]) -> list[Path]:
    """Paths of the files below ``data_dir``; they are downloaded if none of them exists.

    Args:
        data_dir: Folder of the files.
        files: Relative to it.
        fetch: ``fetch(folder)`` downloads them there.

    Raises:
        ValueError: Some are missing, or they can't be downloaded.
    """
    folder = Path(data_dir).expanduser()
    paths = [folder / file for file in files]
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return paths
    if len(missing) < len(paths):
        raise ValueError(f"dataset.data_dir is '{data_dir}': no file {missing[0]}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The runs of a sweep start together: one downloads, the others find its files.
        with held(FileLock(folder / ".download.lock")):
            if not all(path.is_file() for path in paths):
                fetch(folder)
    except (OSError, zipfile.BadZipFile) as error:
        reason = one_line(error)
        raise ValueError(
            f"dataset.data_dir is '{data_dir}': no file {paths[0]}, and it can't be downloaded "
            f"({reason}): give the folder that holds {files[0]}"
        ) from error
    for path in paths:
        if not path.is_file():
            raise ValueError(f"dataset.data_dir is '{data_dir}': the download has no {path.name}")
    return paths


def read_url(url: str) -> bytes:
    """The content of an address.

    Raises:
        OSError: It can't be read.
    """
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def unzip(url: str, folder: Path, files: Sequence[tuple[str, str]]) -> None:
    """Extract some files of a zip archive.

    Args:
        url: Address of the archive.
        folder: Folder for the files.
        files: Name in the archive, name below the folder.

    Raises:
        OSError: It can't be read, or lacks a file.
    """
    with zipfile.ZipFile(io.BytesIO(read_url(url))) as archive:
        for inside, outside in files:
            try:
                write(folder / outside, archive.read(inside))
            except KeyError as error:
                raise OSError(f"{url} holds no {inside}") from error


def write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)
