"""MLflow's pages: refused where their port is taken, else started as one process without queues."""

import os
import socket

import pytest
import yaml

from components.errors import InputError
from pipelines import browse
from tests.clones import ROOT
from tests.infra.local import free_port


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((ROOT / "params.yaml").read_text()) | {"tracking": {}})
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(browse, "ROOT", tmp_path)


@pytest.fixture
def started(monkeypatch) -> list:
    calls = []
    monkeypatch.setattr(os, "execve", lambda *asked: calls.append(asked))
    return calls


def test_a_taken_port_is_one_line_and_nothing_is_started(started):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"^--port: {port} at 127.0.0.1 is taken"):
            browse.main(["--port", str(port)])
    assert not started


def test_one_worker_serves_the_projects_own_store(started, tmp_path):
    port = free_port()
    browse.main(["--port", str(port)])
    ((_, command, environment),) = started
    assert command[command.index("--workers") + 1] == "1" and command[command.index("--port") + 1] == str(port)
    assert command[-1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
