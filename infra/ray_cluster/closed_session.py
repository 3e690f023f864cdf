"""What keeps a Ray session on this machine to itself: a token, listeners on loopback, process groups of its own.

Ray runs whatever code it is sent, so who reaches its ports is the user. Nothing here is for a cluster that is joined;
that has its own token.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import ClassVar, NoReturn

from ray._common import tls_utils
from ray._private import ray_constants, services
from ray._private import worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config

TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
# Ray 2.60: off as on macOS and Windows, a node's address is 127.0.0.1, and all its processes listen there alone
_LOOPBACK = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
_NEEDED = (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)


class _OwnGroup(services.ConsolePopen):
    """A Ray process that a signal to the driver's process group (`timeout`, a terminal, CI) does not reach, so that
    the driver decides when what it has accepted is finished. The kernel still ends it with the driver."""

    started: ClassVar[list[_OwnGroup]] = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, process_group=0, **kwargs)
        self.started.append(self)


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """The time of a session that `ray.init(address="local")` starts within the block: it asks for a fresh random token,
    which its processes, and those that this process starts, read from a file of mode 0600."""
    with tempfile.TemporaryDirectory(prefix="foundry-ray-") as folder:  # of mode 0700
        token = Path(folder) / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        settings = {"RAY_AUTH_MODE": "token", TOKEN_PATH: str(token), **_LOOPBACK}
        with (
            _environment(settings, without=("RAY_AUTH_TOKEN",)),
            _set(ray_constants, "ENABLE_RAY_CLUSTER", False),  # read from the environment when Ray is imported
            _set(services, "ConsolePopen", _OwnGroup),
        ):
            read_settings()
            _OwnGroup.started.clear()
            yield


def end_processes() -> None:
    """Ends what a start within `opened` that failed has left; Ray itself would leave it until this process ends."""
    for process in _OwnGroup.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    _OwnGroup.started.clear()


def keep_replica_to_loopback() -> None:
    """Called by a replica of Serve before it is up: in a session of this machine its port for other replicas, which
    asks for the token, is on loopback like all others. Ray 2.60 opens it on all interfaces."""
    if all(os.environ.get(name) == value for name, value in _LOOPBACK.items()):
        from ray.serve._private import replica

        replica.add_port_to_grpc_server = lambda server, address: tls_utils.add_port_to_grpc_server(
            server, address.replace("[::]", "127.0.0.1")
        )


def lost_process() -> str:
    """The process that a session of this machine cannot do without and that has ended, or nothing."""
    node = ray_worker._global_node
    dead = {kind for kind, _ in node.dead_processes()} if node else set()
    return next(
        (kind for kind in (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER) if kind in dead),
        "",
    )


def end_at_once(status: int) -> NoReturn:
    """Ends the session's processes and this one, without asking anything of Ray."""
    ray_worker._global_node.kill_all_processes(check_alive=False)
    shutil.rmtree(Path(os.environ[TOKEN_PATH]).parent, ignore_errors=True)
    os._exit(status)


def read_settings() -> None:
    """Makes Ray read the environment's settings again, the token's place among them, as a process that starts does."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _environment(values: Mapping[str, str], without: tuple[str, ...]) -> Iterator[None]:
    names = {*values, *without}
    before = {name: os.environ.pop(name) for name in names & set(os.environ)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def _set(module: ModuleType, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
