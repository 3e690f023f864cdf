"""Imports without the garbage collector: torch, Ray and MLflow make hundreds of thousands of objects as they come in,
none of them garbage, and looking through them again and again takes a fifth of the time."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within its block nothing is collected. What it imported stays out of later collections, too; where that was there
    already, nothing does: a process that comes here again and again would keep all its garbage."""
    was_on, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > num_modules:
            gc.freeze()
        if was_on:
            gc.enable()
