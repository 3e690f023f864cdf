"""infra/mlflow/serve.sh for real: Postgres and MLflow's server on loopback, artifacts in a bucket of `s3`."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.infra.local import free_port

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "a-password-of-tests"
PATIENCE = 90  # seconds


def missing() -> str:
    """Why the server cannot be started here; empty, if it can."""
    for program in ("initdb", "postgres"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return ""


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database. Postgres refuses to run as root, so root runs it as its own user."""
    is_root = os.getuid() == 0
    who = {"user": "postgres", "group": pwd.getpwnam("postgres").pw_gid, "extra_groups": []} if is_root else {}
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder, port = Path(name), free_port()
        if is_root:
            shutil.chown(folder, "postgres")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **who}
        initdb = ["initdb", "--no-sync", "--auth=trust", "--username=mlflow", folder / "data"]
        subprocess.run(initdb, check=True, **quiet)
        server = subprocess.Popen(
            ["postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"], **quiet
        )
        try:
            _wait_for_database(port, server)
            yield f"postgresql+psycopg://mlflow@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(30)


def _wait_for_database(port: int, server: subprocess.Popen) -> None:
    import psycopg

    for _ in range(PATIENCE * 10):
        assert server.poll() is None, "postgres ended"
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(f"host=127.0.0.1 port={port} user=mlflow dbname=postgres", connect_timeout=2).close()
            return
        time.sleep(0.1)
    raise TimeoutError("postgres does not answer")


@contextlib.contextmanager
def mlflow_server(database: str, artifacts: str, log: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server that keeps its records in `database` and its artifacts in `artifacts`."""
    port = free_port()
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_DATABASE": database,
        "MLFLOW_ARTIFACTS": artifacts,
        "MLFLOW_ALLOWED_HOSTS": f"{host}:{port}",
        "MLFLOW_HOST": host,
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-secret-of-tests",
    }
    with log.open("wb") as file:
        command, environment = ["bash", ROOT / "infra/mlflow/serve.sh"], os.environ | settings
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=log.parent)
    try:
        _wait_for_health(f"http://{host}:{port}/health", server, log)
        yield f"http://{host}:{port}"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for_health(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(PATIENCE * 5):
        assert server.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.2)
    raise TimeoutError(f"{address} does not answer\n{log.read_text()[-3000:]}")
