"""Images a second at three times the capacity, as a share of the capacity; what is accepted is finished.

python -m tests.benchmarks.serve_overload_goodput
"""

from __future__ import annotations

import asyncio
import os

from tests.benchmarks.common import emit
from tests.benchmarks.serving_load import Load, by_chance, closed
from tests.benchmarks.serving_peers import served

SECONDS = float(os.environ.get("OVERLOAD_SECONDS", "90"))
OVERLOAD, CLIENTS = 3.0, 48


def told(load: Load) -> dict:
    waits = sorted(load.retry_after)
    middle = waits[len(waits) // 2] if waits else None
    return {"statuses": dict(load.statuses), "median_retry_after_s": middle, **load.told()}


def main() -> None:
    with served() as (addresses, sampler):
        capacity = asyncio.run(closed(addresses["ours"], CLIENTS, SECONDS / 2))
        load = asyncio.run(by_chance(addresses["ours"], OVERLOAD * capacity.rate, SECONDS, ramp=SECONDS / 4))
        again = asyncio.run(closed(addresses["ours"], CLIENTS, SECONDS / 2))
    lost = {status: count for status, count in load.statuses.items() if status not in (200, 429)}
    emit(
        "serve_overload_goodput",
        round(100 * load.rate / capacity.rate, 1),
        "% of the capacity, of three times as many requests",
        ">= 90, none lost",
        lost=lost,
        overload=told(load),
        capacity=told(capacity),
        afterwards=told(again),
        sampler=sampler,
    )


if __name__ == "__main__":
    main()
