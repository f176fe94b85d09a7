"""What malloc does with the memory that a step has freed."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of ``mallopt``, as in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Have malloc keep freed blocks of up to a gibibyte for the next step; whether it does.

    glibc gives large blocks back to the system, so that a step gets its activations as new pages,
    each of them zeroed at its first touch: a quarter of the time of a small convolutional network.
    Where there is no glibc, nothing changes.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        # Older ones take at most 32 MiB for the second.
        return bool(
            set_option(_TRIM_THRESHOLD, 2**30)
            and (set_option(_MMAP_THRESHOLD, 2**30) or set_option(_MMAP_THRESHOLD, 2**25))
        )
    return False
