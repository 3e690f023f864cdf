"""How threads of one forward wait for each other (OpenMP's waiting policy): milliseconds of the demo's U-Net by rows,
in a process of its own for each policy, with the machine to itself and beside a process that keeps one core busy.

    python -m tests.benchmarks.waiting_policy

libgomp, which torch brings on Linux, spins for milliseconds by default; beside other work a thread then spins for one
that has lost its core.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from tests.benchmarks.common import demo, emit

POLICIES = {
    "default": {},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
ROWS = (1, 16)
SECONDS = 4.0  # of each figure
WORK = "while True: pass"
HERE = "here"  # said to a process that is to measure


def forwards() -> dict[int, float]:
    """Median milliseconds of a forward by rows, in this process, with all its cores."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    family, info, _ = demo("ldm")
    net = family.nets["denoiser"].eval()
    found = {}
    with torch.inference_mode():
        for rows in ROWS:
            x, level = torch.randn(rows, *info.shape), torch.rand(rows)
            label = torch.zeros(rows, dtype=torch.long)
            times, until = [], time.perf_counter() + SECONDS
            while time.perf_counter() < until:
                began = time.perf_counter()
                net(x, level, label=label)
                times.append(1000 * (time.perf_counter() - began))
            found[rows] = round(statistics.median(times[len(times) // 10 :]), 2)
    return found


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", WORK]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def told_by(benchmark: str, policy: dict[str, str]) -> str:
    """The last line of a benchmark that measures `here`, in a process of its own under a policy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-m", f"tests.benchmarks.{benchmark}", HERE]
    done = subprocess.run(command, env=kept | policy, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def main(argv: list[str] | None = None) -> None:
    if argv == [HERE]:
        print(json.dumps(forwards()))
        return
    table = {}
    for state, processes in (("alone", 0), ("beside a busy process", 1)):
        with busy(processes):
            table[state] = {name: json.loads(told_by("waiting_policy", policy)) for name, policy in POLICIES.items()}
    rows = str(ROWS[-1])
    gain = table["beside a busy process"]["default"][rows] / table["beside a busy process"]["passive"][rows]
    cost = table["alone"]["passive"][rows] / table["alone"]["default"][rows]
    unit = f"times the forwards of {rows} rows beside a busy process, passive / default"
    emit("waiting_policy", round(gain, 2), unit, "told", alone=round(1 / cost, 2), milliseconds=table)


if __name__ == "__main__":
    main(sys.argv[1:])
