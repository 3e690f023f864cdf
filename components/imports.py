"""Imports without the garbage collector: torch, Ray and MLflow make hundreds of thousands of objects as they come in,
none of them garbage, and looking through them again and again takes a fifth of the time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within its block nothing is collected. What is there at its end stays out of later collections, too."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
