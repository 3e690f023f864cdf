"""What a worker does about the notice that its node will be taken away: trains on for as long as there is time, then
saves and stops, so that no step is lost."""

from __future__ import annotations

import time

import ray.train
from ray.train.collective import broadcast_from_rank_zero

CHECK_EVERY = 1.0  # seconds between two looks for a notice, which are collective
RESERVE = 5.0  # seconds before the deadline that a save gets at least
PATIENCE = 60.0  # seconds after the deadline, until a worker that still lives gives up waiting for its end


class Preemption:
    """The training loop's `leave`: all workers answer alike, because rank 0 decides for all."""

    def __init__(self) -> None:
        self._next_check: int | None = None  # the step of it
        self._checked = time.monotonic()
        self._checked_step = 0
        self._save_seconds = 0.0
        self.deadline: float | None = None  # when a notice came, unix time in seconds

    def saved(self, seconds: float) -> None:
        """Tells how long a save took; the reserve before a deadline follows it."""
        self._save_seconds = seconds

    def __call__(self, step: int) -> bool:
        if self._next_check is not None and step < self._next_check:
            return False
        info = ray.train.get_preemption_info()
        if info is not None:
            # without a deadline the end may come at any moment
            self.deadline = info.deadline_ms / 1000 if info.deadline_ms else time.time()
        left = None if self.deadline is None else self.deadline - max(RESERVE, 3 * self._save_seconds) - time.time()
        leave, self._next_check = broadcast_from_rank_zero((left is not None and left <= 0, self._plan(step, left)))
        return leave

    def _plan(self, step: int, left: float | None) -> int:
        """The step of the next check, from the pace since the last."""
        now = time.monotonic()
        pace = (step - self._checked_step) / max(now - self._checked, 1e-6) if self._next_check is not None else 0.0
        self._checked, self._checked_step = now, step
        until = CHECK_EVERY if left is None else min(CHECK_EVERY, max(left, 0.0))
        return step + max(1, int(pace * until))

    def wait_for_the_end(self) -> None:
        """After leaving: Ray ends this worker at the deadline, and continues the run on the nodes that stay. Raises
        RuntimeError if it does not, which makes Ray restart the workers."""
        while time.time() < (self.deadline or 0) + PATIENCE:
            time.sleep(0.2)
        raise RuntimeError("the node was to be taken away, and was not")
