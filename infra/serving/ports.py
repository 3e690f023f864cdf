"""The port of a server, claimed before anything is started: Serve's proxy would share it with whoever has it
(SO_REUSEPORT), or try for a minute to bind it."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Iterator

from components.errors import InputError


@contextlib.contextmanager
def claimed(host: str, port: int, key: str = "serve.port") -> Iterator[None]:
    """The time of a server at `host` and `port`, which `key` sets. Raises InputError if it cannot listen there, or
    another is starting to."""
    if not 0 < port < 2**16:  # larger ones are taken modulo 65,536
        raise InputError(f"{key}: {port} is no port; expected 1 to {2**16 - 1}")
    with contextlib.ExitStack() as claims:
        try:
            if sys.platform == "linux":  # a name without a file, free again when this process ends, however it ends
                name = claims.enter_context(socket.socket(socket.AF_UNIX))
                name.bind(f"\0latent-foundry-port-{port}")
            _try_to_listen(host, port)
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be listened at ({error.strerror})"
            raise InputError(f"{key}: {port} at {host} {reason}; expected a free port of this machine") from None
        yield


def _try_to_listen(host: str, port: int) -> None:
    (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may linger
        listener.bind(address)
        listener.listen()
