"""A Ray head of its own on loopback, with the job server, for tests that submit to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.infra.local import free_port

PATIENCE = 90  # seconds


@contextlib.contextmanager
def ray_head(environment: Mapping[str, str], num_cpus: int = 4) -> Iterator[str]:
    """The address of its job server. `environment`: what its jobs see."""
    ports = {
        name: free_port()
        for name in ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-port")
    }
    ports["metrics-export-port"] = ports.pop("metrics-port")
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    program = str(Path(sys.executable).with_name("ray"))
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        command = [program, "start", "--head", "--block", f"--temp-dir={folder}", f"--num-cpus={num_cpus}"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        command += ["--object-store-memory=100000000", "--node-ip-address=127.0.0.1"]
        head = subprocess.Popen(
            command,
            env={**os.environ, **settings, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        try:
            _wait(f"{address}/api/version", head)
            yield address
        finally:
            head.terminate()
            head.wait(60)


def _wait(address: str, head: subprocess.Popen) -> None:
    for _ in range(PATIENCE * 5):
        assert head.poll() is None, "the head ended"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.2)
    raise TimeoutError(f"{address} does not answer")
