"""Freed memory that a process keeps for its next tensors.

glibc maps large blocks anew each time and gives them back when they are freed; the kernel then clears every page again
at its first use. Activations of clips or of large images are such blocks: forwards of a WaveNet over 128 clips spent
three fifths of their time in the kernel.
"""

from __future__ import annotations

import ctypes
import os
import sys

MAPPED_FROM, TRIMMED_FROM = 2**30, 2**31 - 1  # bytes; the second an int's largest
# mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD. An arena of a thread's own holds 64 MiB at most
_OPTIONS = {-8: 1, -3: MAPPED_FROM, -1: TRIMMED_FROM}

# the same as a process reads it when it starts
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(MAPPED_FROM),
    "MALLOC_TRIM_THRESHOLD_": str(TRIMMED_FROM),
}


def environment() -> dict[str, str]:
    """For processes that are about to start; nothing where this one's own environment says how memory is kept."""
    return {} if _is_told() else ENVIRONMENT


def keep_freed() -> None:
    """Has this process, where its C library is glibc and its environment says nothing else, keep what it frees; to be
    called before it starts threads."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt") and not _is_told():
        for option, value in _OPTIONS.items():
            ctypes.CDLL(None).mallopt(option, value)


def _is_told() -> bool:
    return not os.environ.keys().isdisjoint({*ENVIRONMENT, "GLIBC_TUNABLES"})
