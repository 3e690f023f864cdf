"""The API without Ray: a uvicorn server in a thread, and a backend that runs an engine in this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict

import openai
import uvicorn

from components.artifacts import run_folder
from components.sampling.engine import Engine
from infra.config import ServeConfig
from infra.serving import http_api, ray_serve
from infra.serving.admission import Admission
from infra.serving.model_store import open_model
from infra.serving.orders import SampleRequest
from infra.serving.sampler_replica import SamplerReplica
from infra.serving.served_model import ServedModel


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def served_model(folder, version: str = "3", **facts) -> ServedModel:
    return open_model(folder, name="latent-foundry", version=version, hash=f"content {version}", **facts)


class LocalBackend(SamplerReplica):
    """A replica as Serve runs it, called directly; what the engine raises is told as behind Serve."""

    def __init__(
        self, folder, config: ServeConfig, pause: float = 0, beside: tuple[ServedModel, ...] = (), **facts: object
    ):
        self.device, self.config = "cpu", config
        self.models = (served_model(folder, **facts), *beside)
        self.family = run_folder.load(folder).family
        calls = {name: self.paused(call, pause) if pause else call for name, call in self.family.calls.items()}
        self.engine = Engine(calls, max_rows=config.max_rows, slots=config.slots, queue=config.queue)
        self.model, self.trouble = self.models[0], ""
        self.admission = Admission(self.engine, config.deadline)
        self.stages = lambda stage, seconds: None
        self.submitted: list[Future] = []
        self.orders: list[SampleRequest] = []

    @staticmethod
    def paused(call, pause):
        def net(**inputs):
            time.sleep(pause)
            return call(**inputs)

        return net

    def _submit(self, order, **options):
        self.orders.append(order)
        try:
            self.submitted.append(super()._submit(order, **options))
        except Exception as error:
            raise ray_serve.api_error_of(ray_serve.RayTaskError("generate", "", error)) from error
        return self.submitted[-1]

    async def generate(self, orders):
        return ray_serve.unless_refused(await super().generate(orders))

    async def stream(self, orders):
        async with contextlib.aclosing(super().stream(orders)) as updates:
            async for update in updates:
                yield ray_serve.unless_refused(update)

    async def served(self):
        return self.models

    async def check(self, model):
        return asdict(self.engine.load())

    async def metrics(self, everything):
        return f"foundry_everything {int(everything)}\n"


def ask(address: str, path: str = "/v1/models", body: bytes | None = None, **headers: str):
    """Status, headers and answer of a raw request."""
    request = urllib.request.Request(address + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def client(address: str, key: str = "none", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=retries, timeout=60)


@contextlib.contextmanager
def serving(backend, config: ServeConfig, keys: tuple[str, ...] = ()) -> Iterator[str]:
    """The address of a running server."""
    app = http_api.build(backend, config, keys)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=config.port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{config.port}"
    server.should_exit = True
    thread.join(30)


class StuckReplica(SamplerReplica):
    """A replica whose engine stays in the trajectory of one seed."""

    STUCK_AT = 13

    def trajectory(self, order):
        if order.seed == self.STUCK_AT:
            time.sleep(600)
        return super().trajectory(order)
