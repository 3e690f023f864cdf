"""What HTTP and Serve add to a request: its median latency through the endpoint less that of the engine alone.

python -m tests.benchmarks.serve_http_ms
"""

from __future__ import annotations

import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch

from components.artifacts import run_folder
from components.data.media.image import MEDIUM
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request
from infra.config import ClusterConfig, ServeConfig
from infra.ray_cluster import ray_session
from infra.serving import ray_serve
from infra.serving.model_store import ModelStore
from pipelines.serve import ROOT
from tests.benchmarks.common import emit
from tests.infra.local import free_port
from tests.infra.serving_helpers import write_promoted, write_sampler

BODY = b'{"prompt": "one", "seed": 1, "num_inference_steps": 1, "guidance_scale": 1}'
REPEATS = 200


def median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 20):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[20:])


def in_engine(folder: Path) -> float:
    family = run_folder.load(folder).family
    engine, settings = Engine(family.calls), family.Settings(num_inference_steps=1, guidance_scale=1)
    request = Request(torch.tensor([1]), settings, Conditions(label=torch.tensor([1])))
    latency = median_ms(lambda: MEDIUM.encode(engine.submit(lambda: family.trajectory(request)).result()[0], "png"))
    engine.stop()
    return latency


def through_serve(folder: Path) -> float:
    config = ServeConfig(port=free_port(), threads=1)
    address = f"http://127.0.0.1:{config.port}/v1/images/generations"
    request = urllib.request.Request(address, data=BODY, headers={"Content-Type": "application/json"})
    root = write_promoted(folder.parent, folder.name, "1")
    with ray_session.session(ClusterConfig(), ROOT):
        ray_serve.start(ModelStore(root=str(root)), config)
        latency = median_ms(lambda: urllib.request.urlopen(request).read())
        ray_serve.stop()
    return latency


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_sampler(Path(temporary) / "ldm")
        alone, served = in_engine(folder), through_serve(folder)
    more = {"engine_ms": round(alone, 3), "served_ms": round(served, 3)}
    emit("serve_http_ms", round(served - alone, 2), "ms at p50", "< 10", **more)


if __name__ == "__main__":
    main()
