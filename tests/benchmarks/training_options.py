"""Each option of training against the default, on the demo's autoencoder and U-Net: how many times the images per
second, the sides alternating in one run. torch.compile also tells how long its first step took.

Run with one name to measure that net alone: `python -m tests.benchmarks.training_options vae`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from components.data.dataset import Dataset
from components.training.loop import Wrap
from tests.benchmarks.common import as_a_worker, demo, emit, write_noise
from tests.benchmarks.rates import fit_rate, in_turn

STEPS, WARM, ROUNDS = 4, 1, 3


def channels_last(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    return net.to(memory_format=torch.channels_last), optimizer


def with_optimizer(**flags: bool) -> Wrap:
    def wrap(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        for group in optimizer.param_groups:
            group.update({"fused": False, "foreach": False, **flags})
        return net, optimizer

    return wrap


OPTIONS: dict[str, dict] = {
    "default": {},
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "channels_last": {"wrap": channels_last},
    "loop optimizer": {"wrap": with_optimizer()},
    "foreach optimizer": {"wrap": with_optimizer(foreach=True)},
    "fused optimizer": {"wrap": with_optimizer(fused=True)},
    "accumulate 2": {"accumulate": 2},
    "recompute": {"recompute": True},
}


def measured(name: str, dataset: Dataset, options: dict) -> Callable[[], float]:
    def rate() -> float:
        family, _, batch_size = demo(name)
        return fit_rate(family, dataset, batch_size, STEPS, WARM, **options)

    return rate


def compiled(name: str, dataset: Dataset) -> dict[str, float]:
    """Images/s under torch.compile, and the seconds that the run took until its second step."""
    family, _, batch_size = demo(name)
    began = time.perf_counter()
    rate = fit_rate(family, dataset, batch_size, STEPS, WARM, compile=True)
    return {"rate": rate, "seconds": time.perf_counter() - began - STEPS * batch_size / rate}


def main(names: tuple[str, ...] = ("vae", "ldm"), with_compile: bool = True) -> None:
    as_a_worker()
    table, rates = {}, {}
    for name in names:
        _, info, _ = demo(name)
        with tempfile.TemporaryDirectory() as temporary:
            dataset = write_noise(Path(temporary) / name, info, 1438)
            sides = {option: measured(name, dataset, changes) for option, changes in OPTIONS.items()}
            figures = in_turn(sides, ROUNDS)
            table[name] = {option: round(figure / figures["default"], 2) for option, figure in figures.items()}
            rates[name] = round(figures["default"])
            if with_compile:
                found = compiled(name, dataset)
                table[name]["compile"] = round(found["rate"] / figures["default"], 2)
                table[name]["seconds to compile"] = round(found["seconds"])
    best = min(max(options[o] for o in ("float32", "bfloat16")) for options in table.values())
    emit(
        "training_options",
        best,
        "images/s of the better precision / of the default's",
        "<= 1.05: the default is the better one",
        times_the_default=table,
        default_images_per_second=rates,
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ("vae", "ldm"))
