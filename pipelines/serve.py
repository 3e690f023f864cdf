"""Serves the champion until interrupted: `python -m pipelines.serve` (what `make serve` calls)."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

from components.errors import InputError
from infra.config import ServeConfig
from infra.ray_cluster import ray_session
from infra.serving import http_guards, ports, ray_serve
from infra.serving.model_store import Champions
from infra.serving.served_model import ServedModel
from pipelines.support import cli, paths
from pipelines.support.params import load
from pipelines.support.paths import ROOT


def example(model: ServedModel, config: ServeConfig) -> str:
    """A curl command that makes an image."""
    prompt = next(iter(model.classes), "anything")
    body = json.dumps({"prompt": prompt, "seed": 1})
    return (
        f"curl -s http://{config.host}:{config.port}/v1/images/generations "
        f"-H 'Content-Type: application/json' -d '{body}' "
        f"| python3 -c 'import base64, json, sys; "
        f'open("image.png", "wb").write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))\''
    )


def end(interrupted: threading.Event) -> None:
    """Of the first signal: after what was accepted. Of a second one: at once."""
    if interrupted.is_set():
        raise KeyboardInterrupt
    interrupted.set()


def main(argv: list[str]) -> None:
    if argv:
        raise InputError(f"usage: python -m pipelines.serve, found argument {argv[0]}; params.yaml says how to serve")
    params = load()
    here, promoted = Path.cwd(), str(paths.PROMOTED)
    model_store = ray_serve.model_store_of(
        here, params.promote.registered_model, promoted, params.tracking, params.serve
    )
    Champions(model_store).first()  # if there is none, nothing need be started to say so
    keys = http_guards.read_keys(params.serve)
    interrupted = threading.Event()
    with (
        ports.claimed(params.serve.host, params.serve.port),
        ray_session.session(params.cluster, ROOT),
        ray_session.ending_with_ray(),
    ):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: end(interrupted))
        try:
            model = ray_serve.start(model_store, params.serve, keys)
            print(f"{model.id} at http://{params.serve.host}:{params.serve.port}/v1", flush=True)
            print(example(model, params.serve), flush=True)
            interrupted.wait()
        finally:
            ray_serve.stop(params.serve.deadline)


if __name__ == "__main__":
    cli.run(main)
