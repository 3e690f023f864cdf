"""Listeners of `make serve` that others than this machine reach; a second server on its port is told in one line.

python -m tests.benchmarks.serve_ports
"""

from __future__ import annotations

import contextlib
import ipaddress
import tempfile
from pathlib import Path

import psutil

from tests.benchmarks.common import emit
from tests.benchmarks.served_process import recovered, run_again, serving


def listeners(pid: int) -> list[tuple[str, str, int]]:
    """(process, address, port) of all that a process and those below it opened."""
    found = []
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            opened = [one.laddr for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
            found += [(process.name(), address.ip, address.port) for address in opened]
    return found


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, serving(Path(temporary)) as server:
        recovered(server)
        found = listeners(server.process.pid)
        second = run_again(server.root)
        answered = recovered(server)[1]
    open_ones = sorted({one for one in found if not is_loopback(one[1])})
    emit(
        "serve_ports",
        len(open_ones),
        "listeners beyond loopback",
        "0",
        listeners=len(found),
        open=open_ones,
        second_server={"exit": second.returncode, "told": second.stderr.strip().splitlines()},
        first_goes_on=answered,
    )


if __name__ == "__main__":
    main()
