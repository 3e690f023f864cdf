"""The engine's figures as Prometheus metrics, through Ray's exporter. Serve itself counts and times requests."""

from __future__ import annotations

from collections.abc import Callable

from ray.util.metrics import Gauge, Histogram

from components.sampling.engine import Forward, Load

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)


def recorder(load: Callable[[], Load]) -> Callable[[Forward], None]:
    """What an engine calls after every forward. `load` tells the engine's slots and queue."""
    rows = Histogram("foundry_forward_rows", "Rows of one forward", list(ROWS), ("net",))
    milliseconds = Histogram("foundry_forward_ms", "Milliseconds of one forward", list(MILLISECONDS), ("net",))
    active = Gauge("foundry_active_rows", "Rows of images that advance")
    waiting = Gauge("foundry_waiting_rows", "Rows of images that wait for a slot")
    kept = Gauge("foundry_kept_rows", "Rows that a net keeps between calls, of the net nearest to full")

    def record(forward: Forward) -> None:
        tags = {"net": forward.net}
        rows.observe(forward.rows, tags)
        milliseconds.observe(max(forward.seconds * 1000, 1e-3), tags)
        now = load()
        active.set(now.active)
        waiting.set(now.waiting)
        kept.set(now.kept)

    return record
