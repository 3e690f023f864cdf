"""Images/s of each model of the demo in one process, with one thread and with all cores, and of the GANs' networks in
channels_last: whether a core more, or that layout, is worth having for networks as small as these."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from components.data.dataset import Dataset
from tests.benchmarks.common import as_a_worker, demo, emit, write_noise
from tests.benchmarks.rates import fit_rate, in_turn
from tests.benchmarks.training_options import channels_last

STEPS, WARM, ROUNDS = 5, 2, 2
MODELS = {"vae": 1, "judge": 3, "ldm": 1, "cgan": 8}  # times STEPS, for those that are fast
CHANNELS_LAST = ("cgan",)


def rate(name: str, dataset: Dataset, threads: int, **options) -> float:
    family, _, batch_size = demo(name)
    torch.set_num_threads(threads)
    return fit_rate(family, dataset, batch_size, STEPS * MODELS[name], WARM, **options)


def main() -> None:
    as_a_worker()
    cores = len(os.sched_getaffinity(0))
    rates = {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            dataset = write_noise(Path(temporary) / name, demo(name)[1], 1438)
            sides = {
                "1 thread": lambda name=name, at=dataset: rate(name, at, 1),
                f"{cores} threads": lambda name=name, at=dataset: rate(name, at, cores),
            }
            if name in CHANNELS_LAST:
                sides["1 thread, channels_last"] = lambda name=name, at=dataset: rate(name, at, 1, wrap=channels_last)
            rates[name] = {side: round(figure) for side, figure in in_turn(sides, ROUNDS).items()}
    gains = {name: round(found[f"{cores} threads"] / found["1 thread"], 2) for name, found in rates.items()}
    emit("thread_rates", min(gains.values()), f"times the images/s, {cores} threads / 1", "told", gains=gains, **rates)


if __name__ == "__main__":
    main()
