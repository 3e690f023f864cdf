"""Rates of the training loop on data in memory: rows that look like a model's data, and rows a second of `fit`.

It needs no more than components do, so that it also runs where only torch is (tests/gpu).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from components.data.crops import taken
from components.data.dataset import Dataset, batches
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Family
from components.training.loop import TrainingConfig, Wrap, fit
from tests.components.helpers import no_wrap


def noise_rows(info: DataInfo, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of a data set that looks like `info`: images, or latents where it has an autoencoder."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, len(info.classes), count)
    if info.autoencoder is None:
        return {"image": generator.integers(0, 256, (count, *info.shape), dtype=np.uint8), "label": label}
    mean, std = generator.standard_normal((2, count, *info.shape), dtype=np.float32)
    return {"mean": mean, "std": np.exp(std) / 10, "label": label}


@dataclass(frozen=True)
class Data:
    """A data set in memory, in the place of components.data.Dataset."""

    info: DataInfo
    columns: dict[str, Tensor]
    frames: dict[str, Tensor] = field(default_factory=dict)  # what crops are taken from, all of one bucket

    def __len__(self) -> int:
        return len(self.columns["label"])

    @property
    def buckets(self) -> tuple[range, ...]:
        return (range(len(self)),)

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.columns.items()}

    def crops(self, rows: Tensor, draws: Draws) -> dict[str, Tensor]:
        frames = {name: values[rows] for name, values in self.frames.items()}
        return self.take(rows) | taken(frames, self.info.shape[1:], draws)


def noise(info: DataInfo, count: int, seed: int = 0) -> Data:
    return Data(info, {name: torch.from_numpy(values) for name, values in noise_rows(info, count, seed).items()})


class Clock:
    """Notes when each batch is asked for, which is when the step before has ended. A GPU computes behind:
    there only the time of batch number `settled` is that."""

    def __init__(self, stream: Iterable, settled: int = 0):
        self._stream, self._settled, self.times = stream, settled, []

    def __iter__(self) -> Iterator:
        for item in self._stream:
            if len(self.times) == self._settled:
                settle()
            self.times.append(time.perf_counter())
            yield item


def settle() -> None:
    """Waits for a GPU to finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes, a GPU's included."""
    settle()
    began = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - began


def fit_rate(
    family: Family, dataset: Dataset | Data, batch_size: int, steps: int, warm: int, wrap: Wrap = no_wrap, **training
) -> float:
    """Rows a second of `fit` over `steps` steps after `warm` ones, on the device that the family is on."""
    device = next(family.nets.parameters()).device
    clock = Clock((batch.to(device) for batch in batches(dataset, batch_size)), settled=warm)
    config = TrainingConfig(steps=warm + steps, batch_size=batch_size, save_every=warm + steps, **training)
    saved: list[float] = []
    fit(
        family,
        iter(clock),
        config,
        start=None,
        wrap=wrap,
        report=lambda step, figures: figures,
        save=lambda state: saved.append(time.perf_counter()),
    )
    return steps * batch_size / (saved[-1] - clock.times[warm])


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each side's figures over `rounds` rounds, the sides alternating so that all meet the same noise."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            figures[name].append(side())
    return {name: statistics.median(values) for name, values in figures.items()}
