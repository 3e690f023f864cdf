"""What the engine (engine.py) holds, tells and raises."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from components.sampling.trajectories import Call, Trajectory
from components.sampling.workload import NO_WORK, Work


class EngineFull(Exception):
    """Nothing was accepted: slots and queue are taken, or it could not be finished in time. `retry_after`: seconds
    until there may be room, if that is known; `seconds`: of work that was refused, after which there may be room for
    the next; `hold`: seconds for which whatever else comes would hardly be accepted either, if it goes for all."""

    def __init__(self, message: str, retry_after: float | None = None, seconds: float = 0.0, hold: float = 0.0):
        super().__init__(message)
        self.retry_after, self.seconds, self.hold = retry_after, seconds, hold


class DeadlineExceeded(Exception):
    """The trajectory was not at its end in time."""


class EngineStopped(Exception):
    """The engine's thread has ended; what it held is lost and it accepts no more."""


@dataclass(frozen=True)
class Forward:
    """What one forward did: `rows` of it were asked for by `num_calls` trajectories, `padding` were added."""

    net: str
    rows: int
    padding: int
    num_calls: int
    seconds: float


@dataclass(frozen=True)
class Load:
    """Rows that advance, rows that wait, and how many of each there is room for; rows that nets keep, and how many of
    them there is room for, in the net that is nearest to full; bytes that all nets' caches take."""

    active: int
    waiting: int
    slots: int
    queue: int
    kept: int = 0
    cache_rows: int = 0
    cache_bytes: int = 0


@dataclass(frozen=True)
class Usage:
    """What a trajectory took that came to its end: seconds until its first step, seconds in all, work."""

    queue_seconds: float
    seconds: float
    work: Work


@dataclass(eq=False)
class Task:
    """A trajectory in the engine. `rows` is an estimate until its first call is known; `expected` is the work that it
    was accepted for."""

    start: Callable[[], Trajectory]
    rows: int
    group: Hashable
    deadline: float
    future: Future[Tensor]
    trajectory: Trajectory | None = None
    call: Call | None = None
    arrival: int = 0  # order in which calls came up: the oldest is answered first
    show_at: list[float] = field(default_factory=list)  # shares of the way, the next one last
    on_preview: Callable[[float, Tensor], None] | None = None
    previews: list[Future[Tensor]] = field(default_factory=list)
    leases: dict[str, Tensor] = field(default_factory=dict)  # slots of its rows, by the net that keeps them
    expected: Work = NO_WORK
    on_usage: Callable[[Usage], None] | None = None
    num_calls: Counter[str] = field(default_factory=Counter)  # answered so far, by net
    num_rows: Counter[str] = field(default_factory=Counter)
    submitted: float = field(default_factory=time.monotonic)
    began: float = 0.0  # its first step
    charged: int = field(init=False)

    def __post_init__(self) -> None:
        self.charged = self.rows

    @property
    def signature(self) -> tuple:
        """Calls of equal signature can share a forward."""
        inputs = self.call.inputs.items()
        return (
            self.call.net,
            self.call.stateful,
            tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in inputs),
        )
