"""The engine's figures as Prometheus metrics, through Ray's exporter. Serve itself counts and times requests."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterable

from ray.util.metrics import Gauge, Histogram

from components.sampling.engine import Forward, Load

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
STAGE_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)
OURS = ("ray_foundry_", "ray_serve_")  # what Ray's exporter calls the engines' figures, and Serve's of requests


def recorder(load: Callable[[], Load]) -> Callable[[Forward], None]:
    """What an engine calls after every forward. `load` tells the engine's slots and queue."""
    rows = Histogram("foundry_forward_rows", "Rows of one forward", list(ROWS), ("net",))
    milliseconds = Histogram("foundry_forward_ms", "Milliseconds of one forward", list(MILLISECONDS), ("net",))
    active = Gauge("foundry_active_rows", "Rows of images that advance")
    waiting = Gauge("foundry_waiting_rows", "Rows of images that wait for a slot")
    kept = Gauge("foundry_kept_rows", "Rows that a net keeps between calls, of the net nearest to full")
    taken = Gauge("foundry_cache_bytes", "Bytes of the caches that nets keep rows in, full or not")

    def record(forward: Forward) -> None:
        tags = {"net": forward.net}
        rows.observe(forward.rows, tags)
        milliseconds.observe(max(forward.seconds * 1000, 1e-3), tags)
        now = load()
        active.set(now.active)
        waiting.set(now.waiting)
        kept.set(now.kept)
        taken.set(now.cache_bytes)

    return record


def stages() -> Callable[[str, float], None]:
    """Called with the name of a stage of an image's way, and its seconds."""
    milliseconds = Histogram("foundry_stage_ms", "Milliseconds of a stage of an image", list(STAGE_MS), ("stage",))
    return lambda stage, seconds: milliseconds.observe(max(seconds * 1000, 1e-3), {"stage": stage})


def scrape(nodes: Iterable[tuple[str, int]], everything: bool) -> str:
    """What the exporters at these addresses and ports tell, as one text; unless `everything`, OURS alone. A node that
    does not answer is left out."""
    lines: dict[str, None] = {}  # every line once, in order: nodes describe the same metrics
    for address, port in nodes:
        try:
            with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=5) as answer:
                told = answer.read().decode().splitlines()
        except OSError:
            continue
        lines |= dict.fromkeys(line for line in told if everything or _is_ours(line))
    return "\n".join(sorted(lines, key=_family)) + "\n"


def _is_ours(line: str) -> bool:
    return re.sub("^# (HELP|TYPE) ", "", line).startswith(OURS)


def _family(line: str) -> str:
    """The metric that a line is of: all lines of one must stand together."""
    return re.split(r"[ {]|_bucket|_count\b|_sum\b|_created\b", re.sub("^# (HELP|TYPE) ", "", line), maxsplit=1)[0]
