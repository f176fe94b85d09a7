"""The C kernels of fused.c under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seven_exp.pruning.kernels import compiled

COMPILER = shutil.which(os.environ.get("CC", "cc") or " ")
TRIALS = 25


def sanitized(folder):
    """The library with sanitizers, and the runtime that must be loaded before Python's memory."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    library = folder / "fused.so"
    flags = ("-g", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    command = [COMPILER, *compiled._ALWAYS, *flags, "-shared", "-fPIC", "-o", library]
    made = subprocess.run([*command, compiled._SOURCE, "-lm"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this compiler has no sanitizers: {made.stderr.splitlines()[-1:]}")
    found = subprocess.run(
        [COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("this compiler's AddressSanitizer is no shared library")
    return library, found


@pytest.mark.slow
def test_no_function_touches_memory_that_is_not_its_own(tmp_path):
    library, runtime = sanitized(tmp_path)
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python frees little at its end
        "PYTHONMALLOC": "malloc",  # every object is an allocation of its own
    }
    driver = Path(__file__).with_name("sanitized_fused.py")
    done = subprocess.run(
        [sys.executable, driver, library, str(TRIALS)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
