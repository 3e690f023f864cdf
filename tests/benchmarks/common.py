"""What benchmarks share: how a result is told (one JSON line, printed and appended to bench.jsonl at the project's
root), and the demo's models and data sets of noise on disk to measure on."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import torch

from components.data.dataset import Dataset, write_manifest, write_shard
from components.data.info import DataInfo
from components.families import family_class
from components.families.base import Family
from components.files import whole_folder
from pipelines.support import params
from pipelines.support.paths import ROOT
from tests.benchmarks.rates import noise_rows
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
    kind, latent = family_class(blocks[name].family), untrained()
    info = latent.data if blocks[name].data == config.samplers["ldm"].data else latent.data.autoencoder.data
    torch.manual_seed(0)
    return kind(kind.Config(**blocks[name].model), info), info, blocks[name].training.batch_size


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
