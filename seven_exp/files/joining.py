"""Joins safetensors files into one, byte by byte: no tensor is read into memory."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seven_exp.files.atomic import replacing


def join_tensors(parts: Sequence[Path], path: Path) -> None:
    """Write the tensors and the metadata of all parts, whose names differ, into one file.

    A safetensors file is the length of a header, the header as JSON with the place of each tensor,
    and the tensors' bytes.

    Raises:
        OSError: A file can't be read or written.
    """
    header: dict[str, Any] = {"__metadata__": {}}
    starts, offset = [], 0
    for part in parts:
        with part.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            own = json.loads(file.read(length))
        starts.append(8 + length)
        header["__metadata__"] |= own.pop("__metadata__", {})
        for name, tensor in own.items():
            begin, end = tensor["data_offsets"]
            header[name] = {**tensor, "data_offsets": [offset + begin, offset + end]}
        offset += part.stat().st_size - starts[-1]
    # The library writes metadata in no fixed order; equal parts should give equal bytes.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part, start in zip(parts, starts, strict=True):
            with part.open("rb") as source:
                source.seek(start)
                shutil.copyfileobj(source, file)
