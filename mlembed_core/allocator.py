"""What the C library of a process of ours does with memory that is freed."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h. The second size is the largest that older versions take.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SIZES = (2**30, 2**25)


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed, for the next ones of such a size; nothing happens under other C libraries.

    It hands them back to the system and faults them in again, page by page: a sixth of the CPU time of a small training step, and of
    encoding in float32. Steps and batches ask for the same sizes again and again. Memory that was used once stays the process's, so
    this is for processes that are ours alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        any(mallopt(parameter, size) for size in SIZES)
