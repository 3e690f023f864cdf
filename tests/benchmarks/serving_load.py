"""Load for serving benchmarks: clients that ask again as soon as they are answered, and ones that come by chance."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
import numpy as np

STEPS = (10, 20, 30, 40, 50)
GUIDANCE = (1.0, 1.5, 3.0)
PATH = "/v1/images/generations"


def orders(seed: int = 0) -> Iterator[dict]:
    """Requests of mixed steps and guidance, the same ones for every side."""
    chance = random.Random(seed)
    while True:
        yield {
            "prompt": str(chance.randrange(10)),
            "seed": chance.randrange(2**31),
            "sampler": "euler",
            "num_inference_steps": chance.choice(STEPS),
            "guidance_scale": chance.choice(GUIDANCE),
        }


@dataclass
class Load:
    """What came of it within `seconds` after `ramp`. `latencies` are of images that were made, in seconds."""

    began: float
    seconds: float
    ramp: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)  # by HTTP status; -1: the connection was lost, 0: we left
    retry_after: list[float] = field(default_factory=list)  # seconds that a refusal told

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def told(self) -> dict[str, float]:
        """Images a second, and percentiles of the latency in milliseconds."""
        told = {"images_per_s": round(self.rate, 2)}
        if not self.latencies:
            return told
        marks = np.percentile(self.latencies, (50, 95, 99)) * 1000
        return told | {name: round(mark) for name, mark in zip(("p50_ms", "p95_ms", "p99_ms"), marks, strict=True)}


async def ask(session: aiohttp.ClientSession, address: str, order: dict, load: Load, patience: float | None = None):
    """One request. `patience`: seconds after which the client leaves."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(patience), session.post(address, json=order) as answer:
            await answer.read()
            load.statuses[answer.status] += 1
            if answer.status == 429:
                load.retry_after.append(float(answer.headers["retry-after"]))
            ended = time.perf_counter()
            if answer.status == 200 and 0 <= ended - load.began - load.ramp < load.seconds:
                load.latencies.append(ended - began)
    except TimeoutError:
        load.statuses[0] += 1
    except aiohttp.ClientError:
        load.statuses[-1] += 1


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=300))


async def closed(address: str, num_clients: int, seconds: float) -> Load:
    """Clients each of which has one request at a time. What comes in the first quarter is not counted: the server fills
    up meanwhile. Requests that are under way at the end are waited for and not counted either."""
    load, wanted = Load(time.perf_counter(), 0.75 * seconds, ramp=0.25 * seconds), orders()

    async def client() -> None:
        while time.perf_counter() - load.began < seconds:
            refused = len(load.retry_after)
            await ask(session, address, next(wanted), load)
            if len(load.retry_after) > refused:  # some client was: none asks again at once
                await asyncio.sleep(1)

    async with _session() as session:
        await asyncio.gather(*(client() for _ in range(num_clients)))
    return load


async def by_chance(address: str, rate: float, seconds: float, leaving: float = 0.0, ramp: float = 0.0) -> Load:
    """Requests that come as a Poisson process of `rate` a second, whether or not others are answered. A share
    `leaving` of the clients disconnects within two seconds. Images count that are made after the first `ramp`
    seconds."""
    load = Load(time.perf_counter(), seconds - ramp, ramp)
    wanted, chance, due, asked = orders(1), random.Random(2), 0.0, []
    async with _session() as session:
        while (due := due + chance.expovariate(rate)) < seconds:
            await asyncio.sleep(load.began + due - time.perf_counter())
            patience = chance.uniform(0, 2) if chance.random() < leaving else None
            asked.append(asyncio.ensure_future(ask(session, address, next(wanted), load, patience)))
        await asyncio.gather(*asked)
    return load
