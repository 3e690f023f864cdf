"""Images a second at three times the capacity, as a share of the capacity; what is accepted is finished. Clients run on
the server's own cores: how many of them they take is told, since a server of its own does not bear that.

python -m tests.benchmarks.serve_overload_goodput
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine

from tests.benchmarks.common import emit
from tests.benchmarks.serving_load import Load, by_chance, closed
from tests.benchmarks.serving_peers import served

SECONDS = float(os.environ.get("OVERLOAD_SECONDS", "90"))
OVERLOAD, CLIENTS = 3.0, 48


def told(load: Load) -> dict:
    waits = sorted(load.retry_after)
    middle = waits[len(waits) // 2] if waits else None
    return {"statuses": dict(load.statuses), "median_retry_after_s": middle, **load.told()}


def run(clients: Coroutine[None, None, Load]) -> tuple[Load, dict[str, float]]:
    """What came of some clients' requests, and how many cores the clients took."""
    began, computed = time.perf_counter(), time.process_time()
    load = asyncio.run(clients)
    cores = (time.process_time() - computed) / (time.perf_counter() - began)
    return load, {"clients_cores": round(cores, 3)}


def main() -> None:
    with served() as (addresses, sampler):
        ours = addresses["ours"]
        capacity, at_capacity = run(closed(ours, CLIENTS, SECONDS / 2))
        load, overloaded = run(by_chance(ours, OVERLOAD * capacity.rate, SECONDS, ramp=SECONDS / 4))
        again, afterwards = run(closed(ours, CLIENTS, SECONDS / 2))
    lost = {status: count for status, count in load.statuses.items() if status not in (200, 429)}
    emit(
        "serve_overload_goodput",
        round(100 * load.rate / capacity.rate, 1),
        "% of the capacity, of three times as many requests",
        ">= 90, none lost",
        lost=lost,
        overload=told(load) | overloaded,
        capacity=told(capacity) | at_capacity,
        afterwards=told(again) | afterwards,
        sampler=sampler,
    )


if __name__ == "__main__":
    main()
