"""`python -m pipelines.serve` as a process of its own, in a project with a tiny sampler: what faults are done to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from pipelines.serve import ROOT
from tests.infra.local import ask, free_port
from tests.infra.serving_helpers import write_promoted, write_sampler

COMMAND = [sys.executable, "-m", "pipelines.serve"]
BODY = b'{"prompt": "one", "num_inference_steps": 2}'
PATIENCE = 120.0  # seconds in which a server must be up again
START = 300.0  # seconds in which it must be up, on a machine that does other things too


@dataclass
class Server:
    root: Path
    process: subprocess.Popen
    address: str

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those below it whose titles hold one of these words."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(word in " ".join([process.name(), *process.cmdline()]) for word in words):
                    found.append(process)
        return found


def run_again(root: Path) -> subprocess.CompletedProcess:
    """A second server in the same project."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(COMMAND, cwd=root, env=environment, capture_output=True, text=True, timeout=START)


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    write_sampler(root / "runs/ldm")
    write_promoted(root, "runs/ldm", "1", settings={"num_inference_steps": 2})
    params, port = yaml.safe_load((ROOT / "params.yaml").read_text()), free_port()
    params["serve"] = {"port": port, "threads": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (root / "log").open("w") as log:
        process = subprocess.Popen(COMMAND, cwd=root, env=environment, stdout=log, stderr=log)
    server = Server(root, process, f"http://127.0.0.1:{port}")
    try:
        until = time.monotonic() + START
        while " at http" not in server.log:
            assert time.monotonic() < until and process.poll() is None, server.log[-2000:]
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def recovered(server: Server) -> tuple[float, dict[str, int], list[str]]:
    """Seconds until an image is made again, what a client met meanwhile (by status; 0: refused connection), and
    answers that were not in the API's schema."""
    began, met, strange = time.monotonic(), {}, []
    while time.monotonic() - began < PATIENCE:
        try:
            status, headers, body = ask(server.address, "/v1/images/generations", BODY, **JSON)
        except (urllib.error.URLError, OSError):
            met["0"] = met.get("0", 0) + 1
            time.sleep(0.1)
            continue
        met[str(status)] = met.get(str(status), 0) + 1
        if status == 200:
            return time.monotonic() - began, met, strange
        if not headers.get("content-type", "").startswith("application/json"):
            strange.append(f"{status} {body[:80]!r}")
        time.sleep(0.1)
    return float("inf"), met, strange


JSON = {"Content-Type": "application/json"}
