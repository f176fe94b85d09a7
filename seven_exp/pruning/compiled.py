"""The C of sweeps.c, compiled when it is first wanted; None where there is no compiler."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("sweeps.c")
_ALWAYS = ("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_IF_KNOWN = (("-march=native", "-fopenmp"), ("-fopenmp",), ())
_SEVEN_AND_BEST = (
    *(*[c_void_p] * 9, c_float, c_float),
    *(c_void_p, c_void_p, c_int64, c_void_p, c_int),
)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "seven_float32": (*[c_void_p] * 7, c_int),
    "seven_bfloat16": (*[c_void_p] * 7, c_int),
    "sampled_float32": (*[c_void_p] * 8, c_int64, c_void_p, c_void_p, c_int),
    "sampled_bfloat16": (*[c_void_p] * 8, c_int64, c_void_p, c_void_p, c_int),
    "seven_and_best_float32": _SEVEN_AND_BEST,
    "seven_and_best_bfloat16": _SEVEN_AND_BEST,
    "drop": (*[c_void_p] * 6, c_int64, c_float, c_void_p, c_int),
    "partition": (*[c_void_p] * 3, c_float, c_float, c_void_p, c_int64, c_void_p, c_int),
    "best": (*[c_void_p] * 3, c_float, *[c_void_p] * 2, c_int64, c_void_p, c_int),
    "count": (*[c_void_p] * 3, c_int),
    "pack": (*[c_void_p] * 4, c_int),
    "unpack": (*[c_void_p] * 3, c_int),
    "zero_4_bytes": (*[c_void_p] * 3, c_int),
    "zero_2_bytes": (*[c_void_p] * 3, c_int),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled passes, loaded once a process; None without a C compiler or on a big-endian CPU.

    It takes a fraction of a second, so nothing is kept on disk and nothing can be stale. The
    compiler is ``$CC``, or ``cc``; an empty ``CC`` means none.
    """
    compiler = shutil.which(os.environ.get("CC", "cc") or " ")
    if compiler is None or sys.byteorder != "little":
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        target = Path(folder) / "sweeps.so"
        for flags in _IF_KNOWN:
            command = [compiler, *_ALWAYS, *flags, "-shared", "-fPIC", "-o", target, _SOURCE, "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                loaded = ctypes.CDLL(str(target))
            except (OSError, subprocess.SubprocessError):
                continue
            for name, arguments in _SIGNATURES.items():
                getattr(loaded, name).argtypes = (c_int, *arguments)
            return loaded
    return None
