"""A mailbox of the driver that workers on its machine put reports into, through a Unix socket.

A Ray queue does the same from anywhere, but is an actor: one more process to start, to ask, and to end.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from queue import Empty

from ray._common.utils import get_default_ray_temp_dir


class Sender:
    """A worker's end. It connects when it first puts something, and survives being pickled."""

    def __init__(self, address: str):
        self._address = address
        self._connection: Connection | None = None

    def __reduce__(self) -> tuple:
        return Sender, (self._address,)

    def put(self, item: object) -> None:
        """Hands `item` over; once this returns, the mailbox has it. Raises OSError if the driver is gone."""
        if self._connection is None:
            self._connection = Client(self._address, "AF_UNIX")
        self._connection.send(item)


class Mailbox:
    """The driver's end, read by one thread. Only this user can open its folder, and so put anything into it."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            # beside Ray's own sockets, whose paths are longer, and known to fit
            above = Path(get_default_ray_temp_dir())
            above.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="reports-", dir=above))  # of mode 0700
            self._socket = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._socket.bind(f"{folder}/socket")
            self._socket.listen()
            self.sender = Sender(self._socket.getsockname())
            self._connections: list[Connection] = []
            self._waiting = self._items()
            self._close = stack.pop_all()

    def get(self, timeout: float) -> object:
        """The next item. Raises queue.Empty if none is there within `timeout` seconds."""
        self._until = time.monotonic() + timeout
        if (item := next(self._waiting)) is None:
            raise Empty
        return item

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._close.close()

    def _items(self) -> Iterator[object | None]:
        """Each item put, in its sender's order; None whenever there is none for as long as asked."""
        while True:
            ready = wait([self._socket, *self._connections], max(0.0, self._until - time.monotonic()))
            if not ready:
                yield None
            for source in ready:
                if source is self._socket:
                    self._connections.append(Connection(self._socket.accept()[0].detach()))
                    continue
                try:
                    item = source.recv()
                except (EOFError, OSError):  # its process has ended
                    self._connections.remove(source)
                    source.close()
                    continue
                yield item
