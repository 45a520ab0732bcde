"""Memory of the process: what a pass has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import os

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 512 << 20  # bytes of free memory that stay with the process
_OWN_MAPPING = 32 << 20  # bytes; larger blocks, such as weights, still go back at once


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of freed tensors instead of handing it back after every pass.

    By default the large tensors of a pass are returned to the system when they are freed, and the
    next pass gets zeroed pages for them one fault at a time, which takes a third of the processor
    time of a small model at batch 32. Up to 512 MiB stay with the process instead. Does nothing
    where the environment sets `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_` or
    `GLIBC_TUNABLES`, or where there is no glibc; returns whether the memory is kept. Called by the
    command lines, not by `load`: a library does not decide this for a whole program.
    """
    chosen = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in chosen):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    # 1 is success; both are needed, since setting one stops glibc from adapting the other
    return all(
        set_option(option, size) == 1
        for option, size in ((_M_MMAP_THRESHOLD, _OWN_MAPPING), (_M_TRIM_THRESHOLD, _KEPT))
    )
