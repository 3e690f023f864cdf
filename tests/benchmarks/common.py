"""What benchmarks share: how a result is told (one JSON line, printed and appended to bench.jsonl at the project's
root), and the demo's models and data sets of noise to measure on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.data.dataset import Dataset, batches, write_manifest, write_shard
from components.families import FAMILIES
from components.families.base import DataInfo, Family
from components.files import whole_folder
from components.training.loop import TrainingConfig, Wrap, fit
from pipelines.support import params
from pipelines.support.paths import ROOT
from tests.components.helpers import no_wrap
from tests.infra.champion import untrained

RESULTS = ROOT / "bench.jsonl"


def hardware() -> str:
    """What the figure was measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    amx = ", AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{models[0] if models else cpu}{amx}, {os.cpu_count()} cores"


def emit(name: str, value: float, unit: str, target: str, **more: object) -> None:
    """Prints and records one result; `more` holds what the figure was made of."""
    line = json.dumps(
        {"name": name, "value": value, "unit": unit, "target": target, "hardware": hardware(), **more}, default=str
    )
    with RESULTS.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def demo(name: str) -> tuple[Family, DataInfo, int]:
    """A block of params.yaml: its family with initial weights, what its data is like, and its batch size."""
    config = params.load(ROOT / params.DEFAULT)
    blocks = {**config.autoencoders, **config.judges, **config.samplers}
    kind, latent = FAMILIES[blocks[name].family], untrained()
    info = latent.data if blocks[name].data == config.samplers["ldm"].data else latent.data.autoencoder.data
    torch.manual_seed(0)
    return kind(kind.Config(**blocks[name].model), info), info, blocks[name].training.batch_size


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

    def __len__(self) -> int:
        return len(self.columns["label"])

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.columns.items()}


def noise(info: DataInfo, count: int, seed: int = 0) -> Data:
    return Data(info, {name: torch.from_numpy(values) for name, values in noise_rows(info, count, seed).items()})


def write_noise(folder: Path, info: DataInfo, count: int, rows_per_shard: int = 1024) -> Dataset:
    """A data set on disk with `count` rows of `noise_rows`."""
    with whole_folder(folder) as working:
        shards = [
            write_shard(working, number, noise_rows(info, min(rows_per_shard, count - start), number))
            for number, start in enumerate(range(0, count, rows_per_shard))
        ]
        facts = {"classes": info.classes, "statistics": info.statistics}
        write_manifest(working, shards, value_range=(0, 255), **facts)
    return Dataset(folder)


def as_a_worker() -> None:
    """Sets torch up as a training's worker does, with all cores that this process may use."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False


class Clock:
    """Notes when each batch is asked for, which is when the step before has ended."""

    def __init__(self, stream: Iterable):
        self._stream, self.times = stream, []

    def __iter__(self) -> Iterator:
        for item in self._stream:
            self.times.append(time.perf_counter())
            yield item


def fit_rate(
    family: Family, dataset: Dataset, batch_size: int, steps: int, warm: int, wrap: Wrap = no_wrap, **training
) -> float:
    """Rows a second of `fit` over `steps` steps after `warm` ones."""
    clock = Clock(batches(dataset, batch_size))
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
