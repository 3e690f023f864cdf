"""What each replica runs: a sampler folder in memory and the engine that advances its trajectories."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from components.artifacts import run_folder
from components.data.media import Medium
from components.families.base import Sampler
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request, Source
from components.sampling.trajectories import Trajectory
from infra.config import ServeConfig
from infra.serving import serve_metrics
from infra.serving.autoscaling import LOAD
from infra.serving.model_store import ModelStore, folder_here
from infra.serving.openai_api import SampleRequest, ServedModel, SourceImage, Update

T = TypeVar("T")


class SamplerReplica:
    """A sampler folder in memory and the engine that runs its trajectories."""

    def __init__(self, model: ServedModel, config: ServeConfig, model_store: ModelStore | None = None):
        """`model_store`: where this node gets the model's folder from, if it does not see it."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Ray gives a replica of one CPU one thread
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        self.model, self.config = model, config
        folder = Path(model.folder) if model_store is None else folder_here(model, model_store)
        self.family = in_passing(lambda: run_folder.load(folder, self.device).family)
        self.engine = Engine(
            self.family.calls,
            max_rows=config.max_rows,
            slots=config.slots,
            queue=config.queue,
            buckets=config.buckets,
            cache_bytes=config.cache_bytes,
            on_forward=serve_metrics.recorder(lambda: self.engine.load()),
        )
        self._submit(self._specimen()).result()  # warm, and known to work, before it counts as up

    async def generate(self, order: SampleRequest) -> bytes:
        """The encoded image. Raises what the engine raises; cancelling the call frees its rows."""
        images = await asyncio.wrap_future(self._submit(order))
        return await encoded(self.family.medium, images, order)

    async def stream(self, order: SampleRequest) -> AsyncIterator[Update | None]:
        """None when accepted, then previews, then the image."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue()

        def arrive(*item: object) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, item)

        future = self._submit(order, num_previews=order.num_previews, on_preview=arrive)
        future.add_done_callback(lambda _: arrive())
        try:
            yield None
            while preview := await arrived.get():
                progress, images = preview
                yield Update(progress, await encoded(self.family.medium, images, order))
            yield Update(1.0, await encoded(self.family.medium, future.result(), order), final=True)
        finally:
            future.cancel()

    def _submit(self, order: SampleRequest, **options: Any) -> Future[Tensor]:
        start = functools.partial(self.trajectory, order)
        deadline = time.monotonic() + self.config.deadline
        return self.engine.submit(start, group=order.group, deadline=deadline, **options)

    def trajectory(self, order: SampleRequest) -> Trajectory:
        settings, steered = self.family.Settings(**order.settings), conditions(order, self.family)
        return self.family.trajectory(Request(torch.tensor([order.seed]), settings, steered).to(self.device))

    def _specimen(self) -> SampleRequest:
        """An order with the model's default settings."""
        settings = self.family.Settings(**self.model.settings).model_dump(mode="json")
        steered = {"prompt": ""} if "prompt" in self.model.accepts else {"label": 0 if self.model.classes else None}
        return SampleRequest(model=self.model.key, seed=0, settings=settings, group="specimen", **steered)

    def check_health(self) -> None:
        """Called by Serve; a replica that raises is replaced. An engine that is stuck is given up, so that whoever
        waits for it is told."""
        silence = self.engine.silence()
        if silence > self.config.stuck_after:
            self.engine.give_up()
            raise RuntimeError(f"the engine's thread has shown no sign of life for {silence:.0f} s")

    def check(self) -> dict[str, int]:
        """The engine's load. Raises like `check_health`."""
        self.check_health()
        return asdict(self.engine.load())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, for infra/serving/autoscaling.py."""
        load = self.engine.load()
        return {LOAD: (load.active + load.waiting) / load.slots}

    def __del__(self) -> None:
        # Serve calls this after the last request; a replica whose __init__ failed has no engine
        if hasattr(self, "engine"):
            self.engine.stop(timeout=5)


def in_passing(function: Callable[[], T]) -> T:
    """What a function returns, computed in a thread that then ends.

    libgomp keeps a team of threads for every thread that ever computed, and lets none wait actively once all of them
    outnumber the cores (gomp_throttled_spin_count_var in its env.c): with another thread's team beside the engine's,
    forwards on two cores took twice as long."""
    with ThreadPoolExecutor(1) as passing:
        return passing.submit(function).result()


async def encoded(medium: Medium, rows: Tensor, order: SampleRequest) -> bytes:
    """The only row of an order as a file, made beside the event loop."""
    return await asyncio.to_thread(medium.encode, rows[0], order.output_format, order.output_compression)


def conditions(order: SampleRequest, sampler: Sampler) -> Conditions:
    """What steers an order, as samplers take it: one row."""
    given = {name: getattr(order, name) for name in ("label", "negative_label", "prompt", "negative_prompt")}
    rows = {
        name: (value,) if isinstance(value, str) else torch.tensor([value])
        for name, value in given.items()
        if value is not None
    }
    source = order.source and opened(order.source, sampler.medium, sampler.image_shape)
    return Conditions(**rows, source=source)


def opened(source: SourceImage, medium: Medium, shape: tuple[int, ...]) -> Source:
    """A source as samplers take it, of one row of `shape`."""
    stored = torch.frombuffer(bytearray(source.pixels), dtype=medium.stored_dtype()).reshape(1, *shape)
    mask = None
    if source.mask:
        mask = torch.frombuffer(bytearray(source.mask), dtype=torch.uint8).reshape(1, 1, *shape[1:]).float() / 255
    return Source(medium.to_floats(stored), source.strength, mask)
