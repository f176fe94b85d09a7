"""Hashes of files."""

import hashlib
from pathlib import Path


def hash_of(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
