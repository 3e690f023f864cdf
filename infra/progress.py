"""How far long work has come, told where the command was typed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

LINE_EVERY = 10.0  # seconds, where the output is no terminal

Done = TypeVar("Done")


def told(
    done: Iterable[Done], name: str, unit: str, total: int | None = None, count: Callable[[Done], int] = lambda one: 1
) -> Iterator[Done]:
    """What is done, as it comes, with a bar on a terminal and a line now and then elsewhere; work that is over before
    the first line is due says nothing. `unit`: what is counted, in the plural; `total`: how many there will be, where
    that is known; `count`: how many one of `done` stands for."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc=name, unit=f" {unit}", dynamic_ncols=True, leave=False) as bar:
            for one in done:
                bar.update(count(one))
                yield one
        return
    began = last = time.monotonic()
    so_far = 0
    for one in done:
        so_far, now = so_far + count(one), time.monotonic()
        if now - last >= LINE_EVERY and so_far != total:
            last = now
            print(f"{name}: {line(so_far, total, unit, now - began)}", flush=True)
        yield one


def line(so_far: int, total: int | None, unit: str, seconds: float) -> str:
    """How many are done, the rate and, where the total is known, the time left."""
    rate = so_far / seconds
    if total is None:
        return f"{so_far} {unit}  {rate_text(rate, unit)}"
    return f"{so_far}/{total} {unit}  {rate_text(rate, unit)}  {left_text(total - so_far, rate)}"


def rate_text(rate: float, unit: str) -> str:
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"


def left_text(left: float, rate: float) -> str:
    return f"{left / rate:.0f} s left"
