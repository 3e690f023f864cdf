"""Threads beside one that computes forwards on a CPU.

libgomp keeps a team of threads for every thread that ever computed, and lets none wait actively once all of them
outnumber the cores (gomp_throttled_spin_count_var in its env.c). With another thread's team beside the engine's,
forwards on two cores took twice as long, and small ones, of a sample of a WaveNet, four times.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def begun_in_passing(function: Callable[[], T]) -> Future[T]:
    """What a function will return, computed in a thread that then ends and takes its team along."""
    passing = ThreadPoolExecutor(1)
    future = passing.submit(function)
    passing.shutdown(wait=False)
    return future


def in_passing(function: Callable[[], T]) -> T:
    """What a function returns, computed in a thread that has ended by then."""
    with ThreadPoolExecutor(1) as passing:
        return passing.submit(function).result()
