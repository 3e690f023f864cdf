"""A store that speaks S3 on loopback (moto), and what may be wrong with it. tests/conftest.py loads the fixtures."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator

import boto3
import pytest
from botocore.config import Config
from moto.server import DomainDispatcherApplication, ThreadedMotoServer, create_backend_app
from werkzeug.serving import make_server

from tests.infra.local import free_port

KEY, SECRET = "key", "secret"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def no_aws(monkeypatch, tmp_path) -> None:
    """Nothing of this machine's own AWS settings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def s3(endpoint, no_aws, monkeypatch):
    """A client of an empty store that holds one bucket, which the code under test finds through the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    post(f"{endpoint}/moto-api/reset")
    client = boto3.session.Session().client("s3", config=Config(max_pool_connections=16))
    client.create_bucket(Bucket="bucket")
    return client


def post(address: str, body: bytes = b"") -> None:
    request = urllib.request.Request(address, data=body, headers={"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(request).close()


Wsgi = Callable[[dict, Callable], object]


class Faulty:
    """moto's application of this process, whose store it shares, behind a fault. `calls`: methods, paths and ranges."""

    def __init__(self, fault: Callable[[int, dict, Wsgi, Callable], object]):
        self._application = DomainDispatcherApplication(create_backend_app)
        self._fault, self._numbers, self.calls = fault, itertools.count(), []

    def __call__(self, environ: dict, start_response: Callable) -> object:
        number = next(self._numbers)
        self.calls.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE")))
        return self._fault(number, environ, self._application, start_response)


def one_in_five(number: int, environ: dict, application: Wsgi, start_response: Callable) -> object:
    """Every fifth call is answered by an error that says to come back."""
    if number % 5 == 3:
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", "0")])
        return [b""]
    return application(environ, start_response)


def half_a_body(number: int, environ: dict, application: Wsgi, start_response: Callable) -> object:
    """The first time that a file is asked for from its start, the connection ends in the middle of it."""
    body = b"".join(application(environ, start_response))
    wants_file = environ["REQUEST_METHOD"] == "GET" and "/inputs/files/" in environ["PATH_INFO"]
    return [body[: len(body) // 2]] if wants_file and not environ.get("HTTP_RANGE") else [body]


@contextlib.contextmanager
def serving(application: Wsgi) -> Iterator[str]:
    """The application's address; the server dies when the block ends."""
    server = make_server("127.0.0.1", free_port(), application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
