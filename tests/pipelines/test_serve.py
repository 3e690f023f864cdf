import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from components.errors import SamplerError
from infra.serving.model_store import read_promoted
from tests.infra.local import ask, free_port
from tests.infra.serving_helpers import write_sampler

ROOT = Path(__file__).resolve().parents[2]
PROMOTED = {
    "sampler": "ldm",
    "key": "samplers.ldm",
    "candidate": 0,
    "settings": {"num_inference_steps": 3},
    "figures": {"frechet_distance": 1.5},
    "run_folder": "runs/ldm",
    "model": "latent-foundry",
    "version": "7",
    "hash": "abc",
}


@pytest.fixture
def project(tmp_path):
    """A project's root with a promoted sampler."""
    write_sampler(tmp_path / "runs" / "ldm")
    (tmp_path / "promoted.json").write_text(json.dumps(PROMOTED))
    return tmp_path


def test_the_champion(project):
    model = read_promoted(project / "promoted.json")
    assert model.folder == str(project / "runs" / "ldm")
    assert model.id == "latent-foundry@7" and "source" in model.accepts
    assert model.settings == {"num_inference_steps": 3} and model.size == "16x16"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "promoted.json: missing; .* writes it"),
        ("{", "promoted.json: not what `promote` writes"),
        ("[]", "promoted.json: not what `promote` writes"),
        (json.dumps({"run_folder": "runs/ldm"}), "promoted.json: no 'model' in it"),
        (json.dumps({**PROMOTED, "run_folder": "runs/none"}), "runs/none/config.json: missing"),
    ],
)
def test_no_champion(project, content, message):
    path = project / "promoted.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(SamplerError, match=message):
        read_promoted(path)


def test_serves_until_told_to_end(project):
    """The command itself: starts Ray, prints a curl line that works, and on SIGTERM to all of its process group, as
    `timeout` and a terminal send it, finishes what it accepted and refuses in the API's schema what comes then."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["serve"] = {"port": port, "threads": 1}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "pipelines.serve"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        with ThreadPoolExecutor(2) as pool:
            lines: list[str] = []
            met = pool.submit(statuses, address, lambda: lines)
            lines += [server.stdout.readline().strip() for _ in range(2)]
            assert lines[0] == f"latent-foundry@7 at {address}/v1"
            assert lines[1].startswith(f"curl -s {address}/v1/images/generations ")
            assert met.result(60) <= {200, 503}
            subprocess.run(lines[1], shell=True, cwd=project, check=True, timeout=60)
            assert (project / "image.png").read_bytes().startswith(b"\x89PNG")
            accepted = pool.submit(make_slowly, address)
            while not load(address):
                assert not accepted.done()
            os.killpg(server.pid, signal.SIGTERM)
            refused = pool.submit(statuses, address, accepted.done)
            assert accepted.result(60).startswith(b'{"created"')  # what was accepted is finished
            assert 503 in refused.result(60) and refused.result() <= {200, 503}
        assert server.wait(60) == 0
    finally:
        server.kill()


def statuses(address: str, until: Callable[[], object]) -> set[int]:
    """All that a client meets that asks again and again. What is refused is refused in the schema."""
    met = set()
    while not until():
        time.sleep(0.1)
        try:
            status, headers, body = ask(address)
        except OSError:  # nobody listens yet, or any more
            continue
        met.add(status)
        if status != 200:
            assert headers["retry-after"] and json.loads(body)["error"]["code"] == "unavailable", (status, body)
    return met


def make_slowly(address: str) -> bytes:
    body = json.dumps({"prompt": "one", "n": 4, "num_inference_steps": 250, "sampler": "heun"}).encode()
    request = urllib.request.Request(
        f"{address}/v1/images/generations", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def load(address: str) -> int:
    with urllib.request.urlopen(f"{address}/healthz", timeout=60) as answer:
        return json.load(answer)["load"]["active"]


def test_without_a_champion_it_ends_in_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    command = [sys.executable, "-m", "pipelines.serve"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert re.fullmatch("error: .*/promoted.json: missing; .* writes it", ended.stderr.strip().splitlines()[-1])
