"""Continuous batching of trajectories, step by step.

An engine answers the pending calls of many trajectories to one network by one forward, whatever their solver, number of
steps, guidance, seed or class. They join and leave between any two forwards. A trajectory goes in, a Future comes out.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import torch
from torch import Tensor

from components.sampling.batching import num_rows, packed, split
from components.sampling.state import caches, refuse_more_rows
from components.sampling.tasks import DeadlineExceeded, EngineFull, EngineStopped, Forward, Load, Task, Usage
from components.sampling.trajectories import Answer, Trajectory
from components.sampling.workload import NO_WORK, Paces, Work
from components.threads import in_passing

IDLE_BEAT = 0.2  # seconds between heartbeats of an engine with nothing to do
LATE = "the deadline passed before the image was finished"


class Engine:
    """A thread that advances trajectories together.

    nets:         what answers the calls, by Call.net; rows in, as many rows out, a tensor or a mapping of some
    max_rows:     rows in one forward, unless a single call has more
    slots:        rows of trajectories that advance at the same time; more than `max_rows` take turns
    queue:        rows that may wait for a slot; beyond them `submit` raises EngineFull
    buckets:      sizes that a forward's rows are padded up to, for compiled nets and CUDA graphs; none: no padding
    cache_rows:   of trajectories that a net which keeps rows can hold (components/sampling/state.py); `slots` if not
                  told. Their slots are leased from a trajectory's first such call to its end. No more rows advance than
                  there is room for: others wait in the queue, and beyond it `submit` raises EngineFull
    cache_bytes:  the most that the cache of one net may take
    on_forward:   told about every forward, on the engine's thread
    """

    def __init__(
        self,
        nets: Mapping[str, Callable[..., Tensor]],
        *,
        max_rows: int = 64,
        slots: int = 256,
        queue: int = 256,
        buckets: Sequence[int] = (),
        cache_rows: int | None = None,
        cache_bytes: int | None = None,
        on_forward: Callable[[Forward], None] = lambda forward: None,
    ):
        self.nets, self.max_rows, self.queue = nets, max_rows, queue
        self._caches = in_passing(lambda: caches(nets, cache_rows or slots, cache_bytes))
        self.slots = min([slots, *(cache.rows for cache in self._caches.values())])
        self.buckets = sorted(buckets)
        self.on_forward = on_forward
        self._lock = threading.Condition()
        self._waiting: deque[Task] = deque()  # under the lock
        self._rows = 0  # of all tasks, under the lock
        self._stopping = self._draining = False  # under the lock
        self._active: list[Task] = []  # the thread's own, until it is given up
        self._given_up = False
        self._arrivals = itertools.count()
        self._paces = Paces()  # seconds between two rounds of a busy engine, all that it does beside the nets included
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        start: Callable[[], Trajectory],
        rows: int = 1,
        *,
        group: Hashable = None,
        deadline: float = float("inf"),
        num_previews: int = 0,
        on_preview: Callable[[float, Tensor], None] | None = None,
        expected: Work = NO_WORK,
        on_usage: Callable[[Usage], None] | None = None,
    ) -> Future[Tensor]:
        """Accepts a trajectory; the future gets what it returns, or what it raises.

        start:         makes it, on the engine's thread
        rows:          the most rows of its calls
        group:         trajectories of one group share one turn; None is a group of its own
        deadline:      a time.monotonic(), after which the future gets DeadlineExceeded
        num_previews:  how many, spread evenly over the way; a trajectory that offers fewer shows fewer
        on_preview:    told the share of the way and the images so far, on the engine's thread, never after the end
        expected:      its work, for `seconds_to_finish`
        on_usage:      told what it took, on the engine's thread, if it comes to its end

        Cancelling the future frees the rows before the next forward. Raises EngineFull, or EngineStopped.
        """
        show_at = [part / (num_previews + 1) for part in range(num_previews, 0, -1)]
        group = object() if group is None else group
        task = Task(start, rows, group, deadline, Future(), show_at=show_at, on_preview=on_preview)
        task.expected, task.on_usage = expected, on_usage
        with self._lock:
            if self._stopping or not self._thread.is_alive():
                raise EngineStopped("the engine has stopped")
            if self._rows + rows > self.slots + self.queue:
                raise EngineFull(f"{self._rows} rows are in the engine; it holds {self.slots + self.queue}")
            self._rows += rows
            self._waiting.append(task)
            self._lock.notify()
        return task.future

    def load(self) -> Load:
        with self._lock:
            waiting = sum(task.charged for task in self._waiting)
            fullest = min(self._caches.values(), key=lambda cache: cache.num_free, default=None)
            kept = (fullest.leased, fullest.rows) if fullest else (0, 0)
            taken = sum((cache.rows + 1) * self.nets[net].row_bytes for net, cache in self._caches.items())
            return Load(self._rows - waiting, waiting, self.slots, self.queue, *kept, taken)

    def seconds_to_finish(self, works: Sequence[Work] = ()) -> float:
        """Until all that is in the engine is finished, and trajectories of these works with it, at its pace of late."""
        with self._lock:
            tasks = [*self._waiting, *self._active]
        return self._paces.seconds(_left(tasks)) + self.seconds_of(works)

    def seconds_in_turn(self, works: Sequence[Work]) -> float:
        """Until trajectories of these works would be finished if they came now: they wait until those before them have
        left them slots, and then share every forward with others, so that their own calls follow each other."""
        with self._lock:
            waiting, active = list(self._waiting), list(self._active)
        taken = sum(task.charged for task in active) + sum(task.expected.width for task in waiting)
        is_full = taken + sum(work.width for work in works) > self.slots
        until_slots = self._paces.seconds(_left(waiting)) + self.seconds_of(works) * (1 - 1 / len(works))
        return is_full * until_slots + max(self._paces.serial_seconds(work.calls) for work in works)

    def seconds_of(self, works: Sequence[Work]) -> float:
        """What these works add to the engine's, at its pace of late."""
        return sum(self._paces.seconds(work.rows) for work in works)

    def num_before(self, future: Future) -> int:
        """Trajectories that wait for a slot and came before this one; 0 once it has one."""
        with self._lock:
            futures = [task.future for task in self._waiting]
        return futures.index(future) if future in futures else 0

    def silence(self) -> float:
        """Seconds since the thread's last sign of life, infinite when it has ended. A forward is one long silence."""
        alive = self._thread.is_alive() and not self._given_up
        return time.monotonic() - self._beat if alive else float("inf")

    def stop(self, drain: bool = False, timeout: float | None = None) -> None:
        """Ends the thread: at once, failing what it holds with EngineStopped, or after finishing what was accepted."""
        with self._lock:
            self._stopping, self._draining = True, drain
            self._lock.notify()
        self._thread.join(timeout)

    def give_up(self) -> None:
        """Fails everything with EngineStopped without waiting for the thread, which may never come back. The engine
        accepts no more and its silence is infinite."""
        self._given_up = True
        self._abandon()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    began = time.perf_counter()
                    self._admit()
                    self._drop_gone()
                    if self._active and (chosen := self._choose()):
                        net, rows = chosen[0].call.net, sum(num_rows(task.call) for task in chosen)
                        self._advance(chosen)
                        self._paces.add(net, rows, time.perf_counter() - began)
        finally:
            self._abandon()

    def _wait_for_work(self) -> bool:
        """False when the thread shall end."""
        with self._lock:
            while True:
                self._beat = time.monotonic()
                work = bool(self._waiting or self._active)
                if self._stopping:
                    return work and self._draining
                if work:
                    return True
                self._lock.wait(IDLE_BEAT)

    def _admit(self) -> None:
        """Starts waiting trajectories in order of arrival while there are slots."""
        active = sum(task.charged for task in self._active)
        with self._lock:
            gone = [task for task in self._waiting if _gone(task)]
            self._waiting = deque(task for task in self._waiting if task not in gone)
            started = []
            while self._waiting and (active == 0 or active + self._waiting[0].rows <= self.slots):
                started.append(self._waiting.popleft())
                active += started[-1].rows
        for task in gone:
            self._leave(task, DeadlineExceeded(LATE))
        for task in started:
            self._active.append(task)
            self._step(task, None)

    def _drop_gone(self) -> None:
        # again, because a trajectory that leaves cancels its previews
        while gone := [task for task in self._active if _gone(task)]:
            for task in gone:
                self._leave(task, DeadlineExceeded(LATE))

    def _choose(self) -> list[Task]:
        """The calls of the next forward: those that can share one with the oldest call, every group's first call before
        any group's second, older before newer. So each group advances in every round, however many others have."""
        by_age = self._ready()
        if not by_age:
            return []
        signature, turns = by_age[0].signature, Counter()
        candidates = []
        for task in by_age:
            if task.signature == signature:
                candidates.append((turns[task.group], task.arrival, task))
                turns[task.group] += 1
        chosen, rows = [], 0
        for _, _, task in sorted(candidates, key=lambda candidate: candidate[:2]):
            if not chosen or rows + task.charged <= self.max_rows:
                chosen.append(task)
                rows += task.charged
        return chosen

    def _ready(self) -> list[Task]:
        """Those whose next call can be answered, oldest first: all but calls whose rows are to be kept and for which no
        slots are free. Older ones get slots first. If all wait for each other, the youngest gives up."""
        ready, blocked = [], set()
        for task in sorted(self._active, key=lambda task: task.arrival):
            if task.call.stateful and task.call.net not in task.leases:
                cache, rows = self._caches[task.call.net], num_rows(task.call)
                if task.call.net in blocked or rows > cache.num_free:
                    blocked.add(task.call.net)
                    continue
                task.leases[task.call.net] = cache.lease(rows)
            ready.append(task)
        if not ready:
            youngest = max(self._active, key=lambda task: task.arrival)
            self._leave(youngest, EngineFull(f"{youngest.call.net}: no room to keep its rows"))
        return ready

    def _advance(self, tasks: list[Task]) -> None:
        """Answers the calls of `tasks` by one forward. If it raises, each is answered alone, so that a call that cannot
        be answered fails its own trajectory only."""
        try:
            answers = self._forward(tasks)
        except Exception as error:
            if len(tasks) == 1:
                self._leave(tasks[0], error)
            else:
                for task in tasks:
                    self._beat = time.monotonic()
                    self._advance([task])
            return
        for task, answer in zip(tasks, answers, strict=True):
            task.num_calls[task.call.net] += 1
            task.num_rows[task.call.net] += num_rows(task.call)
            self._step(task, answer)

    def _forward(self, tasks: list[Task]) -> list[Answer]:
        began, calls = time.perf_counter(), [task.call for task in tasks]
        net, counts = calls[0].net, [num_rows(call) for call in calls]
        rows = sum(counts)
        padding = next((size for size in self.buckets if size >= rows), rows) - rows
        inputs: dict[str, Any] = packed(calls, padding)
        if calls[0].stateful:
            slots = torch.cat([task.leases[net][:count] for task, count in zip(tasks, counts, strict=True)])
            inputs |= self._caches[net].inputs(slots, padding, next(iter(inputs.values())))
        answers = split(net, self.nets[net](**inputs), counts, padding)
        self.on_forward(Forward(net, rows, padding, len(calls), time.perf_counter() - began))
        return answers

    def _step(self, task: Task, answer: Tensor | None) -> None:
        """Starts a trajectory or sends it an answer, up to its next call or its end."""
        try:
            if task.trajectory is None:
                task.began = time.monotonic()
                task.trajectory = task.start()
            task.call = task.trajectory.send(answer)
            self._refuse_unkeepable(task)
            self._charge(task, num_rows(task.call))
            task.arrival = next(self._arrivals)
            self._show(task)
        except StopIteration as stop:
            self._leave(task, stop.value)
        except Exception as error:
            self._leave(task, error)

    def _refuse_unkeepable(self, task: Task) -> None:
        """Raises ValueError of a call whose rows its net cannot keep."""
        net = task.call.net
        if task.call.stateful:
            if net not in self._caches:
                raise ValueError(f"{net}: keeps no rows between calls; expected a net with `allocate`")
            most = len(task.leases[net]) if net in task.leases else self._caches[net].rows
            refuse_more_rows(net, num_rows(task.call), most)

    def _show(self, task: Task) -> None:
        """Starts the preview that a call offers, if one is due; it advances like any trajectory of its group."""
        preview = task.call.preview
        if not task.show_at or preview is None or preview.progress < task.show_at[-1]:
            return
        while task.show_at and preview.progress >= task.show_at[-1]:
            task.show_at.pop()
        shown = Task(preview.start, task.charged, task.group, task.deadline, Future())
        task.previews.append(shown.future)

        def tell(future: Future[Tensor]) -> None:
            # a preview that failed is left out: the image may still come
            if not future.cancelled() and future.exception() is None:
                task.on_preview(preview.progress, future.result())

        shown.future.add_done_callback(tell)
        with self._lock:
            self._rows += shown.charged
        self._active.append(shown)
        self._step(shown, None)

    def _charge(self, task: Task, rows: int) -> None:
        if rows != task.charged:
            with self._lock:
                self._rows += rows - task.charged
                task.charged = rows

    def _leave(self, task: Task, outcome: Tensor | Exception) -> None:
        """Frees the rows, then tells the future; one that was cancelled meanwhile is told nothing."""
        if task in self._active:
            self._active.remove(task)
        with self._lock:
            self._rows -= task.charged
        self._free(task)
        if task.trajectory is not None:
            task.trajectory.close()
        for preview in task.previews:
            preview.cancel()
        if task.on_usage is not None and isinstance(outcome, Tensor):
            now = time.monotonic()
            work = Work(dict(task.num_calls), dict(task.num_rows))
            task.on_usage(Usage(task.began - task.submitted, now - task.submitted, work))
        _tell(task.future, outcome)

    def _free(self, task: Task) -> None:
        for net, slots in task.leases.items():
            self._caches[net].free(slots)
        task.leases = {}

    def _abandon(self) -> None:
        """The thread ends: nobody may wait for it."""
        with self._lock:
            self._stopping, self._draining = True, False
            tasks: Iterable[Task] = [*self._active, *self._waiting]
            self._active, self._waiting, self._rows = [], deque(), 0
        for task in tasks:
            self._free(task)
            _tell(task.future, EngineStopped("the engine has stopped"))


def _left(tasks: Iterable[Task]) -> Counter[str]:
    """Rows of each net that are still expected of trajectories."""
    rows: Counter[str] = Counter()
    for task in tasks:
        rows.update({net: max(0.0, count - task.num_rows[net]) for net, count in task.expected.rows.items()})
    return rows


def _gone(task: Task) -> bool:
    return task.future.cancelled() or time.monotonic() > task.deadline


def _tell(future: Future[Tensor], outcome: Tensor | Exception) -> None:
    # a future is told by two threads if the engine was given up and its own came back nevertheless: the first counts
    with contextlib.suppress(InvalidStateError, RuntimeError):  # of set_result and set_running_or_notify_cancel
        if future.done() or not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
