"""Images a second of the engine against one diffusers pipeline call for each request, on the same weights.

Closed loop with 1, 4, 16 and 64 clients, then requests that come by chance at 0.8 of the peer's own throughput; mixed
10 to 50 steps and mixed guidance. The figure is the ratio at 16 clients.

python -m tests.benchmarks.serve_vs_per_request
"""

from __future__ import annotations

import asyncio

from ray import serve

from tests.benchmarks.common import emit
from tests.benchmarks.serving_load import Load, by_chance, closed
from tests.benchmarks.serving_peers import PerRequest, served

CLIENTS, AIM = (1, 4, 16, 64), 16
SECONDS, WARM = 12, 2
OPEN_SHARE = 0.8  # of the peer's throughput: a load that it can just bear


def closed_runs(addresses: dict[str, str], clients: tuple[int, ...] = CLIENTS) -> dict[int, dict[str, Load]]:
    """Runs by number of clients and side, the sides in turn."""
    for address in addresses.values():
        asyncio.run(closed(address, 4, WARM))
    return {
        count: {side: asyncio.run(closed(address, count, SECONDS)) for side, address in addresses.items()}
        for count in clients
    }


def open_runs(addresses: dict[str, str], rate: float) -> dict[str, dict[str, float]]:
    runs = {side: asyncio.run(by_chance(address, rate, SECONDS)) for side, address in addresses.items()}
    return {side: run.told() for side, run in runs.items()}


def compare(name: str, peer: serve.Deployment, target: str) -> None:
    """Measures and tells ours against one peer."""
    with served(peer=peer) as (addresses, sampler):
        runs = closed_runs(addresses)
        rate = OPEN_SHARE * runs[AIM]["peer"].rate
        opened = open_runs(addresses, rate)
    ratios = {count: round(run["ours"].rate / run["peer"].rate, 2) for count, run in runs.items()}
    emit(
        name,
        ratios[AIM],
        f"images/s of ours / of the peer, {AIM} clients",
        target,
        ratios=ratios,
        closed={count: {side: one.told() for side, one in run.items()} for count, run in runs.items()},
        by_chance={"requests_per_s": round(rate, 2), **opened},
        sampler=sampler,
    )


def main() -> None:
    compare("serve_vs_per_request", PerRequest, ">= 4")


if __name__ == "__main__":
    main()
