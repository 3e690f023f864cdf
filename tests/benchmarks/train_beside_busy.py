"""What a busy neighbour costs a training: images/s of the demo's U-Net alone and beside one process that computes all
the time, under each way in which OpenMP's threads can wait for each other.

Threads that spin while they wait take the core that the one waited for is due on. Each figure is of a process of its
own, since OpenMP reads its variables at its start; sides alternate.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.common import as_a_worker, demo, emit, write_noise
from tests.benchmarks.rates import fit_rate, in_turn
from tests.benchmarks.waiting_policy import HERE, POLICIES, busy, told_by

WAYS = {**POLICIES, "one thread": {"THREADS": "1"}}
STEPS, WARM, ROUNDS = 6, 2, 2


def rate(policy: dict[str, str], neighbours: int) -> float:
    """Images/s of a process under the policy."""
    with busy(neighbours):
        return float(told_by("train_beside_busy", policy))


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
        json.dumps([name, neighbours]): lambda policy=policy, neighbours=neighbours: rate(policy, neighbours)
        for name, policy in WAYS.items()
        for neighbours in (0, 1)
    }
    rates = {tuple(json.loads(side)): figure for side, figure in in_turn(sides, ROUNDS).items()}
    alone = rates["default", 0]
    table = {
        name: {
            "alone": round(rates[name, 0]),
            "beside": round(rates[name, 1]),
            "share": round(rates[name, 1] / alone, 2),
        }
        for name in WAYS
    }
    best = max(table, key=lambda name: table[name]["share"])
    told = f"of the rate alone, {best}"
    emit("train_beside_busy", table[best]["share"], told, ">= 0.4, nothing lost alone", table=table)


if __name__ == "__main__":
    print(measure()) if sys.argv[1:] == [HERE] else main()
