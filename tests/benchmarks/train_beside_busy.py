"""What a busy neighbour costs a training: images/s of the demo's U-Net alone and beside one process that computes all
the time, under each way in which OpenMP's threads can wait for each other.

Threads that spin while they wait take the core that the one waited for is due on. Each figure is of a process of its
own, since OpenMP reads its variables at its start; sides alternate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.common import as_a_worker, demo, emit, write_noise
from tests.benchmarks.rates import fit_rate, in_turn

POLICIES = {
    "torch's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 1,000 times": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000 times": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"THREADS": "1"},
}
STEPS, WARM, ROUNDS = 6, 2, 2
BUSY = "while True: pass"


def rate(policy: dict[str, str], busy: bool) -> float:
    """Images/s of a process under the policy."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    neighbour = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.train_beside_busy", "measure"],
            env=clean | policy,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    return float(done.stdout.splitlines()[-1])


def measure() -> float:
    """Images/s of the U-Net's training in this process."""
    import torch

    family, info, batch_size = demo("ldm")
    as_a_worker()
    if "THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["THREADS"]))
    with tempfile.TemporaryDirectory() as temporary:
        return fit_rate(family, write_noise(Path(temporary) / "latents", info, 1438), batch_size, STEPS, WARM)


def main() -> None:
    sides = {
        json.dumps([name, busy]): lambda policy=policy, busy=busy: rate(policy, busy)
        for name, policy in POLICIES.items()
        for busy in (False, True)
    }
    rates = {tuple(json.loads(side)): figure for side, figure in in_turn(sides, ROUNDS).items()}
    alone = rates["torch's own", False]
    table = {
        name: {
            "alone": round(rates[name, False]),
            "beside": round(rates[name, True]),
            "share": round(rates[name, True] / alone, 2),
        }
        for name in POLICIES
    }
    best = max(table, key=lambda name: table[name]["share"])
    emit(
        "train_beside_busy",
        table[best]["share"],
        f"of the rate alone, {best}",
        ">= 0.4, nothing lost alone",
        table=table,
    )


if __name__ == "__main__":
    print(measure()) if sys.argv[1:] == ["measure"] else main()
