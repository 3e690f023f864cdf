"""`serve run infra.serving.ray_serve:app` and serve.yaml."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from components.config import parse
from components.errors import ConfigError
from infra.serving import ray_serve
from infra.serving.http_guards import KEYS_VARIABLE
from tests.infra.local import free_port
from tests.infra.serving_helpers import write_promoted, write_sampler

ROOT = Path(__file__).resolve().parents[3]


def test_serve_yaml_is_one_that_serve_and_the_app_take():
    deployed = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve.yaml").read_text()))
    (app,) = deployed.applications
    module, _, builder = app.import_path.partition(":")
    assert (module, builder) == (ray_serve.__name__, ray_serve.app.__name__)
    config = parse(ray_serve.AppConfig, app.args, "args")
    assert config.serve.replicas == (1, 4) and config.model == "latent-foundry"
    assert ray_serve.app(app.args)  # an application can be built of them


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"rooot": "/tmp"}, "args.rooot: unknown key"),
        ({"serve": {"replicas": [3, 1]}}, r"args.serve: replicas \[3, 1\]: expected \[min, max\]"),
        ({"serve": {"host": "0.0.0.0"}}, "API keys are needed"),
    ],
)
def test_arguments_are_checked_before_anything_starts(args, message, monkeypatch):
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=message):
        ray_serve.app(args)


@pytest.mark.slow
def test_serve_run(tmp_path):
    """A Ray of its own, started and ended by Serve's command line from the config file."""
    write_sampler(tmp_path / "runs/ldm")
    write_promoted(tmp_path, "runs/ldm", "5", settings={"num_inference_steps": 2})
    config, port = yaml.safe_load((ROOT / "serve.yaml").read_text()), free_port()
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["root"] = str(tmp_path)
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [shutil.which("serve"), "run", "--app-dir", str(ROOT), str(tmp_path / "serve.yaml")]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 200
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as answer:
                    assert json.load(answer)["model"] == "latent-foundry@5"
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < until and server.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.5)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
