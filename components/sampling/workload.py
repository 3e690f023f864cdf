"""What requests cost, learned from what was computed: how many rows of which net a kind of request asks for, and how
long they take. Knows neither clock nor queue; components/sampling/engine.py feeds it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

MEMORIES = (10.0, 60.0)  # seconds of a net's forwards, after which what was measured before weighs 1/e
MAX_KINDS = 256


@dataclass(frozen=True)
class Work:
    """What a trajectory asks of each net: `calls` that follow each other, and their `rows` in all."""

    calls: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, float] = field(default_factory=dict)

    @property
    def width(self) -> float:
        """Rows that advance at a time, 1 where nothing is known."""
        return max((self.rows[net] / calls for net, calls in self.calls.items() if calls), default=1.0)


NO_WORK = Work()


class Pace:
    """How long one net takes, as decayed sums, so that full forwards weigh more than small ones."""

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.seconds = self.rows = self.forwards = 0.0

    def add(self, rows: int, seconds: float) -> None:
        decay = math.exp(-seconds / self.memory)
        self.seconds = decay * self.seconds + seconds
        self.rows = decay * self.rows + rows
        self.forwards = decay * self.forwards + 1


class Paces:
    """The pace of every net, of late and before: the slower one counts, since what else a machine does comes and goes.
    Nets that never answered cost nothing."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Pace, ...]] = {}

    def add(self, net: str, rows: int, seconds: float) -> None:
        for pace in self._of.setdefault(net, tuple(map(Pace, MEMORIES))):
            pace.add(rows, seconds)

    def seconds(self, rows: Mapping[str, float]) -> float:
        """Of so many rows of each net, in the company of others as of late."""
        return self._sum(rows, lambda pace: pace.seconds / pace.rows)

    def serial_seconds(self, calls: Mapping[str, float]) -> float:
        """Of so many calls of each net one after the other, however few rows they have."""
        return self._sum(calls, lambda pace: pace.seconds / pace.forwards)

    def _sum(self, counts: Mapping[str, float], cost: Callable[[Pace], float]) -> float:
        return sum(count * max(map(cost, self._of[net])) for net, count in counts.items() if net in self._of)


class Kinds:
    """The work of requests of a kind, scaled by their number of steps. A kind is whatever else work depends on; of one
    that was never seen, the work is the most that any other has."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[int, Work]] = {}  # the longest of each kind

    def add(self, kind: Hashable, steps: int, work: Work) -> None:
        if kind not in self._seen and len(self._seen) >= MAX_KINDS:
            del self._seen[next(iter(self._seen))]
        if kind not in self._seen or steps >= self._seen[kind][0]:
            self._seen[kind] = steps, work

    def expect(self, kind: Hashable, steps: int) -> Work:
        candidates = [self._seen[kind]] if kind in self._seen else list(self._seen.values())
        calls: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        for seen_steps, work in candidates:
            scaled = _scaled(work, seen_steps, steps)
            calls |= Counter(scaled.calls)
            rows |= Counter(scaled.rows)
        return Work(calls, rows)


def _scaled(work: Work, seen_steps: int, steps: int) -> Work:
    """Work of another number of steps: nets that are called about once a step scale, others (a decoder) do not."""
    factors = {net: steps / seen_steps if calls >= seen_steps / 2 else 1.0 for net, calls in work.calls.items()}
    return Work(
        {net: calls * factors[net] for net, calls in work.calls.items()},
        {net: rows * factors[net] for net, rows in work.rows.items()},
    )
