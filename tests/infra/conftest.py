import pytest

from infra.config import ServeConfig
from tests.infra.local import LocalBackend, free_port, serving
from tests.infra.serving_helpers import write_sampler


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_sampler(tmp_path_factory.mktemp("runs") / "ldm")


@pytest.fixture
def backend(folder):
    backend = LocalBackend(folder, ServeConfig(), pause=0.005)
    yield backend
    backend.engine.stop(timeout=30)


@pytest.fixture
def run(backend):
    """Starts a server: run(config fields..., keys=...) -> address."""
    opened = []

    def start(keys=(), **fields):
        config = ServeConfig(port=free_port(), **fields)
        opened.append(serving(backend, config, keys))
        return opened[-1].__enter__()

    yield start
    for server in opened:
        server.__exit__(None, None, None)
