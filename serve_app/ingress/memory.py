"""Memory that an ingress has freed goes back to the system.

Every connection is read in blocks of 256 KiB, which live for milliseconds. glibc soon takes such blocks from its heap,
where small objects that stay keep it from shrinking: a thousand refused connections leave 160 MiB behind. With a fixed
threshold each of those blocks is a mapping of its own, gone when it is freed.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""

THRESHOLD_BYTES = 128 * 1024
"""glibc's own default for both, which it raises by itself unless it is set."""


def return_freed_memory() -> None:
    """Set it up for this process; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, THRESHOLD_BYTES)
