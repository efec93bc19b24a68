"""Freed memory that the C library keeps for the next training step, where it would give it back to the system.

Tensors of a step on a CPU are freed at its end and needed again in the next one. glibc returns what is freed at the end
of the heap to the system once that is more than twice the size of the largest block freed so far, a few megabytes; the
next step then waits for the same pages to be mapped and cleared again.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's `mallopt` (malloc.h)."""
TRIM, MMAP = 1 << 30, 1 << 25
"""Bytes: what may stay free at the end of the heap, and from which size on a block is mapped by itself (the most)."""


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of freed memory; return whether its C library offers that (glibc does).

    It changes no result. The process holds no more than it has needed at the same time before.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    return options is not None and all(
        options(number, size) == 1 for number, size in ((M_TRIM_THRESHOLD, TRIM), (M_MMAP_THRESHOLD, MMAP))
    )
