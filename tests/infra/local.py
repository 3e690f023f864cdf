"""The API without Ray: a uvicorn server in a thread, and a backend that runs an engine in this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict

import uvicorn

from components import run_folder
from components.engine import Engine
from components.run_folder import read_config
from infra import http_api, ray_serve
from infra.config import ServeConfig
from infra.openai_api import ServedModel


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def served_model(folder) -> ServedModel:
    return ServedModel(name="latent-foundry", version="3", folder=str(folder), run=read_config(folder))


class LocalBackend(ray_serve.SamplerReplica):
    """A replica as Serve runs it, called directly; what the engine raises is told as behind Serve."""

    def __init__(self, folder, config: ServeConfig, pause: float = 0):
        self.device, self.config = "cpu", config
        self.family = run_folder.load(folder).family
        calls = {name: self.paused(call, pause) for name, call in self.family.calls.items()}
        self.engine = Engine(calls, max_rows=config.max_rows, slots=config.slots, queue=config.queue)
        self.submitted: list[Future] = []

    @staticmethod
    def paused(call, pause):
        def net(**inputs):
            time.sleep(pause)
            return call(**inputs)

        return net

    def _submit(self, order, **options):
        try:
            self.submitted.append(super()._submit(order, **options))
        except Exception as error:
            raise ray_serve.told(ray_serve.RayTaskError("generate", "", error)) from error
        return self.submitted[-1]

    async def check(self):
        return asdict(self.engine.load())


@contextlib.contextmanager
def serving(backend, model: ServedModel, config: ServeConfig, keys: tuple[str, ...] = ()) -> Iterator[str]:
    """The address of a running server."""
    app = http_api.build(backend, model, config, keys)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=config.port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{config.port}"
    server.should_exit = True
    thread.join(30)
