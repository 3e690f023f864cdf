"""What each replica runs: a sampler folder in memory and the engine that advances its trajectories."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.artifacts import run_folder
from components.cuda_graphs import replayed
from components.data.media import Medium
from components.errors import SamplerError
from components.families.base import Sampler
from components.sampling.batching import powers_of_two
from components.sampling.engine import Engine
from components.sampling.requests import Blend, Conditions, Request, Source
from components.sampling.tasks import DeadlineExceeded, EngineFull, Usage
from components.sampling.trajectories import Trajectory
from components.threads import begun_in_passing, in_passing
from infra.config import ServeConfig
from infra.ray_cluster import closed_session
from infra.serving import file_notes, serve_metrics
from infra.serving.admission import Admission
from infra.serving.autoscaling import LOAD
from infra.serving.backend import Made, Refused, Update
from infra.serving.model_store import ModelStore, folder_here
from infra.serving.orders import SampleRequest, SourceImage, Towards
from infra.serving.served_model import ServedModel

QUEUE_EVERY = 0.1  # seconds between two looks at a request's place in the queue
REFUSALS = (EngineFull, DeadlineExceeded, SamplerError)  # no faults of the replica's


class SamplerReplica:
    """A sampler folder in memory and the engine that runs its trajectories."""

    def __init__(self, model: ServedModel, config: ServeConfig, model_store: ModelStore | None = None):
        """`model_store`: where this node gets the model's folder from, if it does not see it."""
        closed_session.keep_replica_to_loopback()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Ray gives a replica of one CPU one thread
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        self.model, self.config = model, config
        folder = Path(model.folder) if model_store is None else folder_here(model, model_store)
        self.family = in_passing(lambda: run_folder.load(folder, self.device).family)
        graphs = config.cuda_graphs and self.device.type == "cuda"
        self.engine = Engine(
            replayed(self.family.calls) if graphs else self.family.calls,
            max_rows=config.max_rows,
            slots=config.slots,
            queue=config.queue,
            buckets=(powers_of_two(config.max_rows) if graphs else ()) if config.buckets is None else config.buckets,
            cache_bytes=config.cache_bytes,
            on_forward=serve_metrics.recorder(lambda: self.engine.load()),
        )
        self.admission = Admission(self.engine, config.deadline)
        self.stages = serve_metrics.stages()
        self._submit(self._specimen()).result()  # warm, and known to work, before it counts as up

    async def generate(self, orders: list[SampleRequest]) -> Made | Refused:
        """The encoded images of a request. Cancelling the call frees their rows."""
        try:
            return await self._made(orders)
        except REFUSALS as error:
            return Refused(error)

    async def _made(self, orders: list[SampleRequest]) -> Made:
        waited: list[float] = []
        futures = self._accept(orders, on_usage=lambda usage: waited.append(usage.queue_seconds))
        try:
            rows = await asyncio.gather(*map(asyncio.wrap_future, futures))
            return Made([await self._file(*pair) for pair in zip(rows, orders, strict=True)], max(waited, default=0.0))
        finally:
            _cancel(futures)

    async def stream(self, orders: list[SampleRequest]) -> AsyncIterator[tuple[int, Update] | Refused]:
        """By each one's number: its place in the queue, at first when all are accepted, its turn, previews, the
        image."""
        try:
            async with contextlib.aclosing(self._streamed(orders)) as updates:
                async for update in updates:
                    yield update
        except REFUSALS as error:
            yield Refused(error)

    async def _streamed(self, orders: list[SampleRequest]) -> AsyncIterator[tuple[int, Update]]:
        loop, arrived, began = asyncio.get_running_loop(), asyncio.Queue(), time.monotonic()

        def arrive(*item: object) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, item)

        def options(number: int) -> dict[str, Any]:
            return {"on_preview": functools.partial(arrive, number), "num_previews": orders[number].num_previews}

        futures = self._accept(orders, options)
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: arrive(number, 1.0, None))
        try:
            yield 0, Update(0.0, b"", num_before=self.engine.num_before(futures[0]))
            async for place in self._places(futures[0], arrived):
                yield 0, Update(0.0, b"", num_before=place)
            yield 0, Update(0.0, b"", queue_seconds=time.monotonic() - began)
            num_open = len(futures)
            while num_open:
                number, progress, rows = await arrived.get()
                final = rows is None
                image = await self._file(futures[number].result() if final else rows, orders[number], notes=final)
                yield number, Update(progress, image, final)
                num_open -= final
        finally:
            _cancel(futures)

    async def _places(self, future: Future[Tensor], arrived: asyncio.Queue) -> AsyncIterator[int]:
        """How many come before a request, told as it changes until it has its turn."""
        told = None
        while arrived.empty() and (place := self.engine.num_before(future)):
            if place != told:
                yield place
            told = place
            await asyncio.sleep(QUEUE_EVERY)

    def _accept(
        self,
        orders: list[SampleRequest],
        options: Callable[[int], dict[str, Any]] = lambda number: {},
        on_usage: Callable[[Usage], None] = lambda usage: None,
    ) -> list[Future[Tensor]]:
        """All images of a request, or none: raises EngineFull of one that could not be finished in time."""
        self.admission.refuse_unfinishable(orders)
        futures: list[Future[Tensor]] = []
        try:
            for number, order in enumerate(orders):
                futures.append(self._submit(order, on_usage=on_usage, **options(number)))
        except BaseException:
            _cancel(futures)
            raise
        return futures

    def _submit(
        self, order: SampleRequest, on_usage: Callable[[Usage], None] = lambda usage: None, **options: Any
    ) -> Future[Tensor]:
        def used(usage: Usage) -> None:
            self.admission.learn(order, usage)
            self.stages("queue", usage.queue_seconds)
            self.stages("sample", usage.seconds - usage.queue_seconds)
            on_usage(usage)

        return self.engine.submit(
            functools.partial(self.trajectory, order),
            group=order.group,
            deadline=time.monotonic() + self.admission.seconds_left(order),
            expected=self.admission.expected(order),
            on_usage=used,
            **options,
        )

    async def _file(self, rows: Tensor, order: SampleRequest, notes: bool = True) -> bytes:
        """The only row of an order as a file, made beside the event loop."""
        began, medium = time.monotonic(), self.family.medium

        def encoded() -> bytes:
            row = medium.resized(rows[0], order.size) if order.size else rows[0]
            return medium.encode(row, order.output_format, order.output_compression)

        data = await asyncio.wrap_future(begun_in_passing(encoded))
        self.stages("encode", time.monotonic() - began)
        told = file_notes.of(order, self.model) if notes and order.notes else {}
        return medium.annotated(data, order.output_format, told)

    def trajectory(self, order: SampleRequest) -> Trajectory:
        settings, steered = self.family.Settings(**order.settings), conditions(order, self.family)
        request = Request(torch.tensor([order.seed]), settings, steered, order.blend and towards(order.blend))
        return self.family.trajectory(request.to(self.device))

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


def _cancel(futures: list[Future[Tensor]]) -> None:
    for future in futures:
        future.cancel()


def one_row(given: Mapping[str, str | float | None]) -> dict[str, Any]:
    """Each value that is there as samplers take a row of it."""
    there = {name: value for name, value in given.items() if value is not None}
    return {name: (value,) if isinstance(value, str) else torch.tensor([value]) for name, value in there.items()}


def towards(way: Towards) -> Blend:
    """Where an order goes, as samplers take it: one row."""
    rows = one_row({"share": way.share, "seeds": way.seed, "label": way.label, "prompt": way.prompt})
    return Blend(**{"seeds": None, **rows})


def conditions(order: SampleRequest, sampler: Sampler) -> Conditions:
    """What steers an order, as samplers take it: one row."""
    names = ("label", "speaker", "negative_label", "prompt", "negative_prompt", "instead_of")
    rows = one_row({name: getattr(order, name) for name in names})
    source = order.source and opened(order.source, sampler.medium, sampler.row_shape)
    if order.first is not None:
        rows["first"] = first_frame(order.first, sampler.medium, sampler.row_shape)
    if source is not None:
        rows |= {"source": source} if sampler.edits else {"image": source.images}
    size = None if order.sides is None else torch.tensor([order.sides])
    return Conditions(**rows, size=size)


def first_frame(stored: str, medium: Medium, shape: tuple[int, ...]) -> Tensor:
    """A picture in base64 as samplers take it, of one row, for films of `shape`."""
    values = torch.frombuffer(bytearray(base64.b64decode(stored)), dtype=medium.stored_dtype())
    return medium.to_floats(values.reshape(1, shape[0], *shape[2:]))


def opened(source: SourceImage, medium: Medium, shape: tuple[int, ...]) -> Source:
    """A source as samplers take it, of one row of `shape`."""
    stored = torch.frombuffer(bytearray(source.pixels), dtype=medium.stored_dtype()).reshape(1, *shape)
    mask = None
    if source.mask:
        mask = torch.frombuffer(bytearray(source.mask), dtype=torch.uint8).reshape(1, 1, *shape[1:]).float() / 255
    return Source(medium.to_floats(stored), source.strength, mask)
