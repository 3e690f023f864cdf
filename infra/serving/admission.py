"""Which requests a replica accepts: those that it can finish in time, all images of a request or none.

A request's work is estimated from requests of its kind that were finished; what the engine holds and its pace of late
say when it would be finished. Whoever is refused is told when there will be room, one after the other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

from components.sampling.engine import Engine
from components.sampling.tasks import EngineFull, Usage
from components.sampling.workload import Kinds, Work
from infra.serving.api_error import LONGEST
from infra.serving.orders import SampleRequest, num_steps

# shares of the time that is left: for what the engine holds already, since a longer queue makes no more images and all
# wait longer; for that and the request; for its own turn. Estimates are no promises
BEFORE, HELD, TURN = 0.2, 0.5, 0.8
STEPS = "num_inference_steps"
NEARLY = 0.9  # of the time for what the engine holds: from there on next to nothing is accepted
HOLD, LONGEST_HOLD = 0.1, 1.0  # for how much of what it holds, and for how many seconds at most, it is not asked again


class Admission:
    """Stands before one engine. `deadline`: seconds from a request to its last image. For one thread."""

    def __init__(self, engine: Engine, deadline: float):
        self.engine, self.deadline = engine, deadline
        self._kinds = Kinds()
        self._turned_away: deque[tuple[float, float]] = deque()  # when each may come again, and its seconds of work

    def seconds_left(self, order: SampleRequest) -> float:
        """Until its deadline. Clocks of two machines may differ: no more than the whole, and never passed before."""
        return min(self.deadline, max(self.deadline - (time.time() - order.asked_at), 0.0))

    def expected(self, order: SampleRequest) -> Work:
        return self._kinds.expect(_kind(order.settings, order), _steps(order))

    def learn(self, order: SampleRequest, usage: Usage) -> None:
        self._kinds.add(_kind(order.settings, order), _steps(order), usage.work)

    def refuse_unfinishable(self, orders: list[SampleRequest]) -> None:
        """Raises EngineFull of a request that would not be finished in time. An idle engine takes any."""
        load, works = self.engine.load(), [self.expected(order) for order in orders]
        held = load.active + load.waiting
        if not held:
            self._turned_away.clear()
            return
        left = self.seconds_left(orders[0])
        before, own = self.engine.seconds_to_finish(), self.engine.seconds_of(works)
        late = max(
            before - BEFORE * left,
            before + own - HELD * left,
            self.engine.seconds_in_turn(works) - TURN * left,
        )
        is_crowded = held + len(orders) > load.slots + load.queue
        if is_crowded:
            late = max(late, 1.0)
        if late <= 0:
            return
        now = time.monotonic()
        while self._turned_away and self._turned_away[0][0] < now:
            self._turned_away.popleft()
        ahead = sum(seconds for _, seconds in self._turned_away)
        retry_after = min(LONGEST, max(1.0, late + ahead))
        self._turned_away.append((now + retry_after, own))
        is_for_all = is_crowded or before > NEARLY * BEFORE * left
        hold = min(LONGEST_HOLD, HOLD * before) if is_for_all else 0.0
        raise EngineFull(f"it would be {late:.1f} s late", retry_after, own, hold)


def _steps(order: SampleRequest) -> int:
    return max(1, num_steps(order.settings))


def _kind(settings: Mapping[str, Any], order: SampleRequest) -> Hashable:
    """What a request's work depends on beside its steps: every choice, and of numbers whether they are at the bounds
    that switch something off."""
    choices = tuple(_choice(*item) for item in sorted(settings.items()) if item[0] != STEPS)
    steered = (order.label is None, order.prompt is None, order.source is not None, order.sides)
    return choices, steered


def _choice(name: str, value: Any) -> Hashable:
    if isinstance(value, dict):
        return name, tuple(_choice(*item) for item in sorted(value.items()) if item[0] != STEPS)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return name, str(value)
    return name, value in (0, 1)
