"""Compiles the C kernels of fused.c once for each user and processor; None without a compiler."""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from ctypes import POINTER, c_float, c_int, c_int64
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from seven_exp.pruning.kernels.addresses import Address, Layers

_SOURCE = Path(__file__).with_name("fused.c")
_ALWAYS = ("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_IF_KNOWN = (("-march=native", "-fopenmp"), ("-fopenmp",), ())
# Pointers of types that ctypes checks: tensors of layers, one tensor, numbers.
_COLUMN, _NUMBERS, _FACTORS = POINTER(Address), POINTER(c_int64), POINTER(c_float)
_SEVEN = (*[_COLUMN] * 5, _FACTORS, c_int)
_SAMPLED = (*[_COLUMN] * 6, _FACTORS, c_int64, Address, _NUMBERS, c_int)
_SEVEN_AND_BEST = (
    *(*[_COLUMN] * 7, _FACTORS, c_float, c_float),
    *(Address, Address, c_int64, _NUMBERS, c_int),
)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "seven_float32": _SEVEN,
    "seven_bfloat16": _SEVEN,
    "sampled_float32": _SAMPLED,
    "sampled_bfloat16": _SAMPLED,
    "seven_and_best_float32": _SEVEN_AND_BEST,
    "seven_and_best_bfloat16": _SEVEN_AND_BEST,
    "drop": (*[_COLUMN] * 3, Address, Address, c_int64, c_float, _NUMBERS, c_int),
    "partition": (*[_COLUMN] * 2, c_float, c_float, Address, c_int64, _NUMBERS, c_int),
    "best": (*[_COLUMN] * 2, c_float, _COLUMN, _NUMBERS, c_int64, _NUMBERS, c_int),
    "count": (_COLUMN, _NUMBERS, c_int),
    "pack": (_COLUMN, _COLUMN, _NUMBERS, c_int),
    "unpack": (_COLUMN, _COLUMN, c_int),
    "zero_4_bytes": (_COLUMN, _COLUMN, c_int),
    "zero_2_bytes": (_COLUMN, _COLUMN, c_int),
}


class Kernels(NamedTuple):
    """The functions of fused.c, and the layers that a call works on.

    Attributes:
        library: See `library`.
        layers: The arguments that every function begins with.
    """

    library: ctypes.CDLL
    layers: Layers

    def run(self, name: str, *arguments: Any) -> None:
        """Call a function on the layers, with as many threads as torch uses."""
        threads = torch.get_num_threads()
        getattr(self.library, name)(*self.layers.arguments, *arguments, threads)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, loaded once per process; None without a C compiler or if big-endian.

    The compiler is ``$CC``, or ``cc``; an empty ``CC`` disables it. The user's cache keeps what it
    made.
    """
    compiler = shutil.which(os.environ.get("CC", "cc") or " ")
    if compiler is None or sys.byteorder != "little":
        return None
    folder = _kept_in()
    identity = _identity(Path(compiler))
    for kept in folder.glob(f"{identity}-*.so") if folder else ():
        with suppress(OSError):
            if kept.name == _name(identity, kept):
                return _loaded(kept)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made_in:
        target = Path(made_in) / "fused.so"
        for flags in _IF_KNOWN:
            command = [compiler, *_ALWAYS, *flags, "-shared", "-fPIC", "-o", target, _SOURCE, "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                loaded = _loaded(target)
            except (OSError, subprocess.SubprocessError):
                continue
            if folder:
                with suppress(OSError):  # a full disk, or one that can only be read
                    partial = shutil.copyfile(target, folder / f"{os.getpid()}.partial")
                    partial.replace(folder / _name(identity, target))
            return loaded
    return None


def _loaded(file: Path) -> ctypes.CDLL:
    """The functions of a shared object, with their types."""
    loaded = ctypes.CDLL(str(file))
    for name, arguments in _SIGNATURES.items():
        getattr(loaded, name).argtypes = (c_int, _NUMBERS, *arguments)
    return loaded


def _name(identity: str, file: Path) -> str:
    """The name under which a shared object is kept: to load a damaged one can end the process."""
    return f"{identity}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.so"


def _kept_in() -> Path | None:
    """A folder that nobody but the user can write, because its files are executed; else None."""
    if not hasattr(os, "getuid"):  # not a POSIX system
        return None
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(cache_home).expanduser() / "seven_exp" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # there is no home
        return None
    others = stat.S_IWGRP | stat.S_IWOTH
    return None if found.st_uid != os.getuid() or found.st_mode & others else folder


def _identity(compiler: Path) -> str:
    """Of the source, the compiler and the processor that its code is for."""
    tool = compiler.resolve()
    facts = [_ALWAYS, _IF_KNOWN, tool, tool.stat().st_mtime_ns, platform.machine()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += [line for line in dict.fromkeys(lines) if line.startswith(("flags", "Features"))]
    return hashlib.sha256(_SOURCE.read_bytes() + repr(facts).encode()).hexdigest()[:32]
