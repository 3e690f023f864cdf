"""Serves the champion until interrupted: `python -m pipelines.serve` (what `make serve` calls)."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

from pydantic import ValidationError

from components import run_folder
from components.config import parse
from components.errors import InputError, SamplerError
from infra import http_guards, ray_serve, ray_session
from infra.config import ServeConfig
from infra.openai_api import ServedModel
from pipelines import cli, paths
from pipelines.params import DEFAULT, load

ROOT = Path(__file__).resolve().parent.parent


def read_promoted(path: Path) -> ServedModel:
    """The champion that promoted.json names; its run folder is relative to the file. Raises SamplerError."""
    try:
        promoted = json.loads(path.read_text())
        folder = (path.parent / promoted["run_folder"]).resolve()
        return ServedModel(
            name=promoted["model"],
            version=str(promoted["version"]),
            folder=str(folder),
            run=run_folder.read_config(folder),
            **{key: promoted[key] for key in ("settings", "figures", "hash") if key in promoted},
        )
    except FileNotFoundError:
        raise SamplerError(f"{path}: missing; `make demo` or `dvc repro promote` writes it") from None
    except KeyError as error:
        raise SamplerError(f"{path}: no {error.args[0]!r} in it; expected what `promote` writes") from None
    except (json.JSONDecodeError, TypeError, ValidationError) as error:
        raise SamplerError(f"{path}: not what `promote` writes ({str(error).splitlines()[0]})") from None


def example(model: ServedModel, config: ServeConfig) -> str:
    """A curl command that makes an image."""
    prompt = next(iter(model.run.data.classes), "anything") if model.kind.conditional else "anything"
    body = json.dumps({"prompt": prompt, "seed": 1})
    return (
        f"curl -s http://{config.host}:{config.port}/v1/images/generations "
        f"-H 'Content-Type: application/json' -d '{body}' "
        f"| python3 -c 'import base64, json, sys; "
        f'open("image.png", "wb").write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))\''
    )


def application(changes: dict) -> object:
    """The champion of the folder that this project lies in, as `serve deploy` and a RayService import it. `changes` are
    keys of `serve` that differ from params.yaml's."""
    params = load(ROOT / DEFAULT)
    config = parse(ServeConfig, {**params.serve.model_dump(), **changes}, "args")
    model = read_promoted(ROOT / paths.PROMOTED)
    return ray_serve.application(model, config, ray_session.has_gpu(params.cluster), http_guards.read_keys(config))


def main(argv: list[str]) -> None:
    if argv:
        raise InputError(f"usage: python -m pipelines.serve, found argument {argv[0]}; params.yaml says how to serve")
    params = load()
    model = read_promoted(paths.PROMOTED)
    keys = http_guards.read_keys(params.serve)
    interrupted = threading.Event()
    with ray_session.session(params.cluster, ROOT):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: interrupted.set())
        try:
            ray_serve.start(model, params.serve, ray_session.has_gpu(params.cluster), keys)
            print(f"{model.ids[1]} at http://{params.serve.host}:{params.serve.port}/v1", flush=True)
            print(example(model, params.serve), flush=True)
            interrupted.wait()
        finally:
            ray_serve.stop()


if __name__ == "__main__":
    cli.run(main)
