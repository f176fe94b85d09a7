"""Compiles the C kernels of fused.c at first use; None if there is no compiler."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
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

    Compilation takes a fraction of a second, so nothing is cached on disk and nothing gets stale.
    The compiler is ``$CC``, or ``cc``; an empty ``CC`` disables it.
    """
    compiler = shutil.which(os.environ.get("CC", "cc") or " ")
    if compiler is None or sys.byteorder != "little":
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        target = Path(folder) / "fused.so"
        for flags in _IF_KNOWN:
            command = [compiler, *_ALWAYS, *flags, "-shared", "-fPIC", "-o", target, _SOURCE, "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                loaded = ctypes.CDLL(str(target))
            except (OSError, subprocess.SubprocessError):
                continue
            for name, arguments in _SIGNATURES.items():
                getattr(loaded, name).argtypes = (c_int, _NUMBERS, *arguments)
            return loaded
    return None
