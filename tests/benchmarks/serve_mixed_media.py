"""The 95th percentile of images' latency while one server makes films, and while it makes sounds, over that of the same
requests alone. Each version has an engine of its own, all share the cores.

    python -m tests.benchmarks.serve_mixed_media
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp

from components.families.base import Sampler
from infra.config import ClusterConfig, ServeConfig, TrackingConfig
from infra.ray_cluster import ray_session
from infra.serving import ray_serve
from infra.serving.model_store import ModelStore
from infra.tracking.registry import Entry, Registry, Version
from pipelines.serve import ROOT
from tests.benchmarks.common import emit
from tests.benchmarks.mixed_media import film_diffusion, wavenet
from tests.benchmarks.serving_load import PATH, Load, closed
from tests.benchmarks.serving_peers import write_untrained
from tests.infra.champion import untrained
from tests.infra.local import free_port

SECONDS = float(os.environ.get("MIXED_SECONDS", "40"))
CLIENTS = 2  # of images, each with one request at a time
MODEL = "latent-foundry"
POLL_EVERY, UP = 0.2, 280.0  # seconds

Work = Callable[[aiohttp.ClientSession, str], Awaitable[None]]


def register(registry: Registry, folder: Path, number: int, sampler: Sampler) -> Version:
    write_untrained(folder, sampler)
    candidate = {"sampler": folder.name, "settings": {}, "figures": {}, "protocol": {}}
    return registry.register(Entry(folder, f"{number}" * 64, "none", candidate, {}, {}))[0]


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of a server of an image sampler, the champion, and of one of films and one of sounds beside it."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        root = Path(temporary)
        registry = Registry(TrackingConfig(), root, MODEL)
        makers = {"ldm": untrained, "film": film_diffusion, "wavenet": wavenet}
        versions = [
            register(registry, root / "runs" / name, number, make())
            for number, (name, make) in enumerate(makers.items())
        ]
        registry.move(versions[0], "benchmark")
        stack.enter_context(ray_session.session(ClusterConfig(num_workers=4), ROOT))
        # the API waits as long as a request may take until all versions are up
        settings = {"deadline": UP, "max_steps": 50, "watch_every": 1, "videos": str(root / "videos")}
        beside = tuple(version.number for version in versions[1:])
        config = ServeConfig(port=free_port(), versions=beside, **settings)
        stack.callback(ray_serve.stop)
        ray_serve.start(ModelStore(root=str(root), tracking=TrackingConfig(), versions=beside), config)
        host = f"http://127.0.0.1:{config.port}"
        asyncio.run(up(host, len(versions)))
        yield host


async def up(host: str, count: int) -> None:
    """Waits for all versions."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(UP):
        while len((await (await session.get(f"{host}/v1/models")).json())["data"]) < count + 1:
            await asyncio.sleep(POLL_EVERY)


async def film(session: aiohttp.ClientSession, host: str) -> None:
    job = await posted(session, f"{host}/v1/videos", {"model": f"{MODEL}@2", "prompt": "3"})
    while job["status"] in ("queued", "in_progress"):
        await asyncio.sleep(POLL_EVERY)
        job = await (await session.get(f"{host}/v1/videos/{job['id']}")).json()
    assert job["status"] == "completed", job


async def sound(session: aiohttp.ClientSession, host: str) -> None:
    asked = {"model": f"{MODEL}@3", "input": "3", "response_format": "wav"}
    async with session.post(f"{host}/v1/audio/speech", json=asked) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()


async def posted(session: aiohttp.ClientSession, address: str, body: dict) -> dict:
    async with session.post(address, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def beside(host: str, work: Work | None) -> tuple[Load, int]:
    """Images' load while a client asks for one of something else after the other, and how many it got."""
    made = 0

    async def others(session: aiohttp.ClientSession) -> None:
        nonlocal made
        while True:
            await work(session, host)
            made += 1

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        running = asyncio.ensure_future(others(session)) if work else None
        load = await closed(host + PATH, CLIENTS, SECONDS)
        if running:
            assert not running.done(), running.exception()
            running.cancel()
            await asyncio.wait({running})
    return load, made


def main() -> None:
    with served() as host:
        works = {"alone": None, "films": film, "sounds": sound}
        found = {name: asyncio.run(beside(host, work)) for name, work in works.items()}
    none = [name for name, (load, _) in found.items() if not load.latencies]
    assert not none, f"no image was made in {SECONDS:.0f} s ({', '.join(none)}); expected a larger MIXED_SECONDS"
    lost = sum(count for load, _ in found.values() for status, count in load.statuses.items() if status != 200)
    p95 = {name: load.told()["p95_ms"] for name, (load, _) in found.items()}
    emit(
        "serve_mixed_media",
        round(max(p95["films"], p95["sounds"]) / p95["alone"], 2),
        "p95 of images' latency beside films or sounds, the larger / alone",
        "below 3, none lost",
        lost=lost,
        images={name: load.told() for name, (load, _) in found.items()},
        made={name: count for name, (_, count) in found.items()},
    )


if __name__ == "__main__":
    main()
