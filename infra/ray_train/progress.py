"""Reports of work on a cluster, brought to where the command was typed: to a bar on a terminal or lines in a log, and
to whoever else listens there, such as the tracker. Workers only put them into a queue and go on."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

import ray
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

RATE = "images_per_second"  # a figure of every report on steps
LINE_EVERY = 10.0  # seconds, where the output is no terminal


class Listener(Protocol):
    def figures(self, step: int, figures: dict[str, float]) -> None: ...

    def picture(self, name: str, png: bytes) -> None: ...


class Reports:
    """While its block runs, hands what workers put into `queue` to the listeners: tuples of a Listener's method name
    and its arguments. A listener that fails is told of and left out, so that work does not stop for it."""

    def __init__(self, listeners: Sequence[Listener]):
        # beside this process: a worker's node may be taken away, and the queue with it
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._listeners = list(listeners)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Reports:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._done.set()
        self._thread.join()
        self.queue.shutdown(force=True)

    def _listen(self) -> None:
        while True:
            finished = self._done.is_set()  # read before the queue, so that nothing put earlier is missed
            try:
                method, *arguments = self.queue.get(timeout=0.2)
            except Empty:
                if finished:
                    return
                continue
            for listener in list(self._listeners):
                try:
                    getattr(listener, method)(*arguments)
                except Exception:
                    self._listeners.remove(listener)
                    print(f"{type(listener).__name__} failed and gets no more reports:", file=sys.stderr)
                    traceback.print_exc()


def console(name: str, total: int) -> Listener:
    """Shows progress towards `total` steps as fits the output."""
    return Bar(name, total) if sys.stderr.isatty() else Lines(name, total)


def describe(figures: dict[str, float]) -> str:
    """The rate and the losses, the rest is for the tracker."""
    rate = f"{figures[RATE]:.0f} images/s"
    losses = [f"{name} {value:.4g}" for name, value in figures.items() if name.endswith("/loss")]
    return "  ".join([rate, *losses])


class Bar:
    """A progress bar."""

    def __init__(self, name: str, total: int):
        layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}] {postfix}"
        self._bar = tqdm(total=total, desc=name, bar_format=layout, dynamic_ncols=True)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        if RATE not in figures:  # of a checkpoint's validation, not of steps
            return
        self._bar.set_postfix_str(describe(figures), refresh=False)
        self._bar.update(step - self._bar.n)
        self._bar.refresh()
        if step >= self._bar.total:
            self._bar.close()

    def picture(self, name: str, png: bytes) -> None:
        pass


class Lines:
    """A line now and then."""

    def __init__(self, name: str, total: int):
        self._name, self._total = name, total
        self._first: tuple[float, int] | None = None
        self._last = 0.0

    def figures(self, step: int, figures: dict[str, float]) -> None:
        if RATE not in figures:  # of a checkpoint's validation, not of steps
            return
        now = time.monotonic()
        self._first = self._first or (now, step)
        if now - self._last < LINE_EVERY and step < self._total:
            return
        self._last = now
        elapsed, steps = now - self._first[0], step - self._first[1]
        left = f"  {elapsed / steps * (self._total - step):.0f} s left" if steps > 0 and step < self._total else ""
        print(f"{self._name}: step {step}/{self._total}  {describe(figures)}{left}", flush=True)

    def picture(self, name: str, png: bytes) -> None:
        pass
