"""Makes malloc keep the memory that a step has freed, or return it at once."""

import contextlib
import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt``, as in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Make malloc keep freed blocks of up to 1 GiB for the next step; return whether it does.

    glibc returns large blocks to the system, so every step gets new pages for its activations, each
    of which is zeroed at its first access: a quarter of the time of a small convolutional network.
    Without glibc, nothing changes.
    """
    # Older versions accept at most 32 MiB for the second parameter.
    return _set(_TRIM_THRESHOLD, 2**30) and (
        _set(_MMAP_THRESHOLD, 2**30) or _set(_MMAP_THRESHOLD, 2**25)
    )


def return_freed_memory() -> bool:
    """Return freed memory to the system now, cycles of objects included; return whether it worked.

    glibc keeps freed blocks and the gaps between them, which add up from one block of a model to
    the next. From the first call on, it returns those of a mebibyte or more at once.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        return _set(_MMAP_THRESHOLD, 2**20) and bool(ctypes.CDLL(None).malloc_trim(0))
    return False


def _set(option: int, value: int) -> bool:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        return bool(ctypes.CDLL(None).mallopt(option, value))
    return False
