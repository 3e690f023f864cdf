"""Ray Serve: an engine in each replica, and the API in front of them."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from components import run_folder
from components.engine import DeadlineExceeded, Engine, EngineFull, EngineStopped
from components.errors import InputError
from components.images import encode
from components.sampling import Request, Trajectory
from infra import http_api, serve_metrics
from infra.config import ServeConfig
from infra.openai_api import ApiError, ImageOrder, ServedModel, Update

NAME = "latent-foundry"
RETRY_AFTER = 1  # seconds
LOGGING = {"encoding": "JSON"}  # a line a request: id, route, status, milliseconds; never the body


class SamplerReplica:
    """A sampler folder in memory and the engine that runs its trajectories."""

    def __init__(self, model: ServedModel, config: ServeConfig):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Ray gives a replica of one CPU one thread
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        self.family = run_folder.load(Path(model.folder), self.device).family
        self.config = config
        self.engine = Engine(
            self.family.calls,
            max_rows=config.max_rows,
            slots=config.slots,
            queue=config.queue,
            buckets=config.buckets,
            on_forward=serve_metrics.recorder(lambda: self.engine.load()),
        )

    async def generate(self, order: ImageOrder) -> bytes:
        """The encoded image. Raises what the engine raises; cancelling the call frees its rows."""
        images = await asyncio.wrap_future(self._submit(order))
        return await encoded(images, order)

    async def stream(self, order: ImageOrder) -> AsyncIterator[Update | None]:
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
                yield Update(progress, await encoded(images, order))
            yield Update(1.0, await encoded(future.result(), order), final=True)
        finally:
            future.cancel()

    def _submit(self, order: ImageOrder, **options: Any) -> Future[Tensor]:
        start = functools.partial(self.trajectory, order)
        deadline = time.monotonic() + self.config.deadline
        return self.engine.submit(start, group=order.group, deadline=deadline, **options)

    def trajectory(self, order: ImageOrder) -> Trajectory:
        seeds = torch.tensor([order.seed], device=self.device)
        labels = None if order.label is None else torch.tensor([order.label], device=self.device)
        return self.family.trajectory(Request(seeds, labels, self.family.Settings(**order.settings)))

    def check_health(self) -> None:
        """Called by Serve; a replica that raises is replaced."""
        silence = self.engine.silence()
        if silence > self.config.stuck_after:
            raise RuntimeError(f"the engine's thread has shown no sign of life for {silence:.0f} s")

    def check(self) -> dict[str, int]:
        """The engine's load. Raises like `check_health`."""
        self.check_health()
        return asdict(self.engine.load())

    def __del__(self) -> None:
        # Serve calls this after the last request; a replica whose __init__ failed has no engine
        if hasattr(self, "engine"):
            self.engine.stop(timeout=5)


@serve.ingress()
class Frontend:
    """The API; it holds no weights."""

    def __init__(self, samplers: DeploymentHandle, model: ServedModel, config: ServeConfig, keys: tuple[str, ...]):
        self.samplers, self.model, self.config, self.keys = samplers, model, config, keys
        self.streams = samplers.options(stream=True)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_api.build(self, self.model, self.config, self.keys)

    async def generate(self, order: ImageOrder) -> bytes:
        try:
            return await self.samplers.generate.remote(order)
        except (RayError, RayServeException) as error:
            raise told(error) from error

    async def stream(self, order: ImageOrder) -> AsyncIterator[Update | None]:
        updates = self.streams.stream.remote(order)
        try:
            async for update in updates:
                yield update
        except (RayError, RayServeException) as error:
            raise told(error) from error
        finally:
            updates.cancel()

    async def check(self) -> dict[str, int]:
        try:
            return await asyncio.wait_for(self.samplers.check.remote(), timeout=5)
        except (RayError, RayServeException, TimeoutError) as error:
            raise told(error) from error


async def encoded(images: Tensor, order: ImageOrder) -> bytes:
    """The only image of an order as a file, made beside the event loop."""
    return await asyncio.to_thread(encode, images[0], order.output_format, order.output_compression)


def told(error: Exception) -> ApiError:
    """What a client may know of a failure behind the API."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, EngineFull | BackPressureError):
        return ApiError(
            429,
            "the queue is full; try again shortly",
            kind="rate_limit_error",
            code="queue_full",
            retry_after=RETRY_AFTER,
        )
    if isinstance(cause, DeadlineExceeded):
        return ApiError(504, f"deadline: {cause}", kind="server_error", code="deadline_exceeded")
    if isinstance(cause, EngineStopped | TimeoutError) or not isinstance(error, RayTaskError):
        return ApiError(
            503,
            "the sampler is being replaced; try again",
            kind="server_error",
            code="unavailable",
            retry_after=RETRY_AFTER,
        )
    return ApiError(500, "the sampler failed on this request; the server's log says why", kind="server_error")


def application(model: ServedModel, config: ServeConfig, gpu: bool, keys: tuple[str, ...] = ()) -> serve.Application:
    """The deployments. Raises SamplerError here, in the driver, if the sampler folder cannot be loaded."""
    run_folder.load(Path(model.folder))
    most = config.slots + config.queue
    samplers = serve.deployment(SamplerReplica).options(
        name="sampler",
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpu)},
        max_ongoing_requests=most + 64,  # above the engine's own limit, which refuses with a reason
        health_check_period_s=2,
        logging_config=LOGGING,
        graceful_shutdown_timeout_s=config.deadline,
    )
    frontend = serve.deployment(Frontend).options(
        name="api",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2 * most + 64,
        logging_config=LOGGING,
        graceful_shutdown_timeout_s=config.deadline,
    )
    return frontend.bind(samplers.bind(model, config), model, config, keys)


def start(model: ServedModel, config: ServeConfig, gpu: bool, keys: tuple[str, ...] = ()) -> None:
    """Serves in the connected Ray session until `stop`. Returns when requests are answered. `keys` are the digests of
    the API keys that are accepted; none: no key is asked for."""
    app = application(model, config, gpu, keys)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": config.host, "port": config.port})
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise InputError(f"serve: {model.folder} could not be deployed ({str(error).splitlines()[0]})") from None


def stop() -> None:
    """Finishes what was accepted, then ends Serve."""
    serve.shutdown()
