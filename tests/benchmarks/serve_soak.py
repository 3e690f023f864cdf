"""Ten minutes at 1.5 times what the server can do, a tenth of the clients leaving early: memory stays flat, and every
request is answered or refused with a 429.

SOAK_SECONDS=600 python -m tests.benchmarks.serve_soak
"""

from __future__ import annotations

import asyncio
import os

import psutil

from tests.benchmarks.common import emit
from tests.benchmarks.serving_load import by_chance, closed
from tests.benchmarks.serving_peers import served

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
OVERLOAD, LEAVING = 1.5, 0.1
WARM_SHARE = 0.2  # of the time, until memory counts
EVERY = 5.0  # seconds between two looks at memory


def resident_mib() -> float:
    """Memory of all Serve replicas below this process."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::ServeReplica"):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


async def soak(address: str, rate: float) -> tuple:
    """The load, and the memory in MiB at each look."""
    memory: list[float] = []

    async def look() -> None:
        while True:
            memory.append(resident_mib())
            await asyncio.sleep(EVERY)

    looking = asyncio.ensure_future(look())
    load = await by_chance(address, rate, SECONDS, LEAVING)
    looking.cancel()
    return load, memory


def main() -> None:
    with served() as (addresses, sampler):
        capacity = asyncio.run(closed(addresses["ours"], 64, 15)).rate
        load, memory = asyncio.run(soak(addresses["ours"], OVERLOAD * capacity))
    settled = memory[int(WARM_SHARE * len(memory)) :]
    half = len(settled) // 2
    growth = sum(settled[half:]) / (len(settled) - half) - sum(settled[:half]) / half
    told = {"answered": load.statuses[200], "refused_429": load.statuses[429], "left": load.statuses[0]}
    wrong = {status: count for status, count in load.statuses.items() if status not in (200, 429, 0)}
    emit(
        "serve_soak",
        sum(wrong.values()),
        "requests neither answered nor refused by a 429",
        "0",
        seconds=SECONDS,
        capacity=round(capacity, 2),
        **told,
        wrong=wrong,
        memory_mib={"first": round(settled[0]), "last": round(settled[-1]), "growth_of_mean": round(growth, 1)},
        sampler=sampler,
        **load.told(),
    )


if __name__ == "__main__":
    main()
