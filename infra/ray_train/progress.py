"""Reports of work on a cluster, brought to where the command was typed: to a bar on a terminal or lines in a log, and
to whoever else listens there, such as the tracker. Workers only put them into a queue and go on."""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from queue import Empty
from types import TracebackType
from typing import Protocol

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from components.errors import InputError
from infra.progress import LINE_EVERY, left_text, rate_text
from infra.ray_train.mailbox import Mailbox, Sender

RATE = "images_per_second"  # a figure of every report on steps, of whatever medium


class Listener(Protocol):
    """Told of what workers report. It need not have a method for everything."""

    def figures(self, step: int, figures: dict[str, float]) -> None: ...

    def picture(self, name: str, png: bytes) -> None: ...

    def precision(self, used: str, emulated: bool) -> None: ...


class Reports:
    """While its block runs, hands what workers put into `queue` to the listeners: tuples of a Listener's method name
    and its arguments. A listener that fails is told of and left out, so that work does not stop for it."""

    def __init__(self, listeners: Sequence[Listener], here: bool):
        """`here`: whether all workers are on this machine."""
        self.queue: Queue | Sender
        if here:
            mailbox = Mailbox()
            self.queue, self._close = mailbox.sender, mailbox.close
            self._get = functools.partial(mailbox.get, timeout=0.05)  # seconds between two looks whether all is over
        else:
            self.queue = queue = _ray_queue()
            self._get, self._close = functools.partial(queue.get, timeout=0.2), functools.partial(queue.shutdown, True)
        self._listeners = list(listeners)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Reports:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._done.set()
        self._thread.join()
        self._close()

    def _listen(self) -> None:
        while True:
            finished = self._done.is_set()  # read before the queue, so that nothing put earlier is missed
            try:
                method, *arguments = self._get()
            except Empty:
                if finished:
                    return
                continue
            for listener in [listener for listener in self._listeners if hasattr(listener, method)]:
                try:
                    getattr(listener, method)(*arguments)
                except InputError as error:
                    self._listeners.remove(listener)
                    print(f"{type(listener).__name__} gets no more reports: {error}", file=sys.stderr)
                except Exception:
                    self._listeners.remove(listener)
                    print(f"{type(listener).__name__} failed and gets no more reports:", file=sys.stderr)
                    traceback.print_exc()


def _ray_queue() -> Queue:
    """A queue beside this process: a worker's node may be taken away, and the queue with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def console(name: str, total: int, batch_size: int, unit: str = "images", start: int = 0) -> Listener:
    """Shows progress from step `start` towards `total`, of batches of `batch_size` of `unit`, as fits the output."""
    return Bar(name, total, unit, start) if sys.stderr.isatty() else Lines(name, total, batch_size, unit, start)


def describe(figures: dict[str, float], unit: str) -> str:
    """The rate and the losses, the rest is for the tracker."""
    losses = [f"{name} {value:.4g}" for name, value in figures.items() if name.endswith("/loss")]
    return "  ".join([rate_text(figures[RATE], unit), *losses])


def precision_text(used: str, emulated: bool) -> str:
    """`emulated`: whether the processor has no instructions for it, which a run that began elsewhere bears."""
    return f"computes in {used}" + (", which is slow on this processor; training.precision sets it" if emulated else "")


class Bar:
    """A progress bar."""

    def __init__(self, name: str, total: int, unit: str = "images", start: int = 0):
        self._unit = unit
        layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}] {postfix}"
        self._bar = tqdm(total=total, initial=start, desc=name, bar_format=layout, dynamic_ncols=True)

    def precision(self, used: str, emulated: bool) -> None:
        self._bar.write(f"{self._bar.desc}: {precision_text(used, emulated)}", file=sys.stderr)

    def progress(self, step: int, rate: float) -> None:
        self._bar.update(step - self._bar.n)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        if RATE not in figures:  # of a checkpoint's validation, not of steps
            return
        self._bar.set_postfix_str(describe(figures, self._unit), refresh=False)
        self._bar.update(step - self._bar.n)
        self._bar.refresh()
        if step >= self._bar.total:
            self._bar.close()


class Lines:
    """A line at once, one soon after the first steps, and one now and then, with the time left at the rate so far."""

    def __init__(self, name: str, total: int, batch_size: int, unit: str = "images", start: int = 0):
        self._name, self._total, self._batch_size, self._unit = name, total, batch_size, unit
        self._last = -math.inf
        print(f"{name}: step {start}/{total}, workers start", flush=True)

    def precision(self, used: str, emulated: bool) -> None:
        print(f"{self._name}: {precision_text(used, emulated)}", flush=True)

    def progress(self, step: int, rate: float) -> None:
        self._tell(step, rate, rate_text(rate, self._unit))

    def figures(self, step: int, figures: dict[str, float]) -> None:
        if RATE in figures:  # else of a checkpoint's validation, not of steps
            self._tell(step, figures[RATE], describe(figures, self._unit))

    def _tell(self, step: int, rate: float, told: str) -> None:
        now = time.monotonic()
        if now - self._last < LINE_EVERY and step < self._total:
            return
        self._last = now
        parts = [f"{self._name}: step {step}/{self._total}", told]
        if step < self._total and rate:
            parts.append(left_text((self._total - step) * self._batch_size, rate))
        print("  ".join(parts), flush=True)
