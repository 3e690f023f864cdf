"""Seconds from a fault to the next image, of the slowest fault that a server survives: the API's replica, the proxy and
an engine are killed. Faults that it does not survive end it with one line: Ray's raylet is killed.

python -m tests.benchmarks.serve_recovery_s
"""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path

from tests.benchmarks.common import emit
from tests.benchmarks.served_process import PATIENCE, recovered, serving

FAULTS = {"api": ("ServeReplica:latent-foundry:api",), "proxy": ("ProxyActor",), "engine": ("#sampler", ":sampler")}


def main() -> None:
    seconds, more = {}, {}
    with tempfile.TemporaryDirectory() as temporary, serving(Path(temporary)) as server:
        for name, words in FAULTS.items():
            killed = server.processes(*words)
            assert killed, f"{name}: no process of {words}"
            for process in killed:
                process.kill()
            time.sleep(0.05)  # the kernel closes its connections
            seconds[name], met, strange = recovered(server)
            more[name] = {"s": round(seconds[name], 1), "statuses": met, "not_in_the_schema": strange}
            time.sleep(5)
        for process in server.processes("raylet/raylet"):
            process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        status = server.process.wait(PATIENCE)
        lines = [line for line in server.log.splitlines() if line.startswith("error: ")]
        more["raylet"] = {"s": round(time.monotonic() - began, 1), "exit": status, "lines": lines}
    emit("serve_recovery_s", round(max(seconds.values()), 1), "s from a kill to the next image", "< 10", **more)


if __name__ == "__main__":
    main()
