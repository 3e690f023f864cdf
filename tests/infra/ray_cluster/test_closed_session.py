"""A Ray session of this machine, attacked: Ray runs whatever code it is sent."""

import contextlib
import ipaddress
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest
import ray

from infra.ray_cluster import closed_session
from infra.ray_cluster.ray_session import ending_with_ray

CALLS = ("CoreWorkerService/NumPendingTasks", "NodeManagerService/GetNodeStats", "JobInfoGcsService/GetNextJobID")


@pytest.fixture(scope="module")
def listeners(ray_session):
    """(process, address, port) of all that the session opened, a worker's among it."""
    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            opened = [one.laddr for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
            found += [(process.name(), address.ip, address.port) for address in opened]
    assert {"gcs_server", "raylet"} <= {name for name, *_ in found}
    return found


def test_every_listener_is_on_loopback(listeners):
    def loopback(text):
        address = ipaddress.ip_address(text)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    assert [listener for listener in listeners if not loopback(listener[1])] == []


def test_no_port_runs_a_job_without_the_token(listeners, tmp_path):
    body = json.dumps({"entrypoint": f"touch {tmp_path / 'in'}"}).encode()
    refused = []
    for name, _, port in listeners:
        for path in ("/api/jobs/", "/api/job_agent/jobs/"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"}
            )
            try:
                urllib.request.urlopen(request, timeout=10).close()
                pytest.fail(f"{name}, port {port}: took a job at {path}")
            except urllib.error.HTTPError as error:
                refused.append(error.code)
            except (OSError, urllib.error.URLError, ValueError):
                pass  # no HTTP there
            except Exception as error:
                assert type(error).__name__ == "BadStatusLine", error
    assert 401 in refused and not (tmp_path / "in").exists()


@pytest.mark.parametrize("told_token", [(), (("authorization", "Bearer " + "0" * 64),)])
def test_no_port_answers_a_call_without_the_token(listeners, told_token):
    told = set()
    for name, _, port in listeners:
        for call in CALLS:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                try:
                    channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=10, metadata=told_token)
                    pytest.fail(f"{name}, port {port}: answered {call}")
                except grpc.RpcError as error:
                    told |= {call} if error.code() is grpc.StatusCode.UNAUTHENTICATED else set()
    assert told == set(CALLS)  # every kind of server was met


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, False),
        ({}, True),  # what the session's own processes inherit
    ],
)
def test_only_the_token_joins(ray_session, given, joined):
    address = ray.get_runtime_context().gcs_address
    script = f"import ray; ray.init('{address}', logging_level='error'); print(ray.get(ray.remote(lambda: 5).remote()))"
    environment = dict(os.environ)
    if given:
        del environment[closed_session.TOKEN_PATH]
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment | given, capture_output=True, text=True, timeout=240
    )
    assert (ended.returncode == 0, ended.stdout.strip()) == (joined, "5" if joined else ""), ended.stderr


def test_the_token_lies_in_a_private_file_and_in_no_argument(ray_session):
    path = Path(os.environ[closed_session.TOKEN_PATH])
    token = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(token) == 64
    processes = psutil.Process().children(recursive=True)
    assert not any(token in " ".join(process.cmdline()) for process in processes if process.is_running())


def test_the_next_session_has_another_token(monkeypatch):
    """What the process had is there again afterwards."""
    monkeypatch.setattr(closed_session, "read_settings", lambda: None)  # of the session that runs beside this test
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the user")
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    tokens = []
    for _ in range(2):
        with closed_session.opened():
            assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ
            tokens.append(Path(os.environ[closed_session.TOKEN_PATH]).read_text())
    assert tokens[0] != tokens[1]
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_")} == before


def test_a_signal_to_the_group_does_not_reach_rays_processes(ray_session):
    groups = {os.getpgid(process.pid) for process in psutil.Process().children() if process.name() == "raylet"}
    assert groups and os.getpgrp() not in groups


def test_from_the_machines_own_address_there_is_no_way(listeners):
    """The address by which others reach this machine, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("no network")
        address = probe.getsockname()[0]
    if ipaddress.ip_address(address).is_loopback:
        pytest.skip("no network")
    for name, _, port in listeners:
        with socket.socket() as connection:
            connection.settimeout(5)
            assert connection.connect_ex((address, port)), f"{name}: port {port} is open at {address}"


def test_the_end_of_rays_own_processes_is_the_end(ray_session, monkeypatch, capfd):
    """What a lost raylet does to `make serve`; `make bench ONLY=serve_recovery_s` kills a real one."""
    assert closed_session.lost_process() == ""
    ended = threading.Event()
    monkeypatch.setattr(closed_session, "lost_process", lambda: "raylet")
    monkeypatch.setattr(closed_session, "end_at_once", lambda status: ended.set() if status == 2 else None)
    with ending_with_ray():
        assert ended.wait(30)
    assert "error: Ray's raylet has ended (its log is in /" in capfd.readouterr().err
