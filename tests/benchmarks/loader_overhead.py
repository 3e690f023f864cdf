"""The loader's share of a training step, on a data set in memory's reach and on one larger than the process may hold.

The first figure is the time to make a batch, alone, over the time of the demo's U-Net step on it. The second comes from
a process whose data segment is limited (RLIMIT_DATA counts what is allocated, not what is mapped), which reads batches
at random from 2 GiB of latents on disk and tells its peak of unshared memory early on and at the end.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from components.data.dataset import Dataset, batches, write_manifest, write_shard
from components.data.info import DataInfo
from components.files import whole_folder
from tests.benchmarks.common import as_a_worker, demo, emit, write_noise
from tests.benchmarks.rates import fit_rate, noise_rows

LARGE, LIMIT = 2 * 2**30, 1 * 2**30  # bytes on disk, bytes that the process may allocate
ROWS_PER_SHARD = 2**16
STEPS, REPEATS = 12, 200


def loader_seconds(dataset: Dataset, batch_size: int, repeats: int) -> float:
    """The mean time to make one batch."""
    stream = batches(dataset, batch_size)
    next(stream)
    began = time.perf_counter()
    for _ in range(repeats):
        next(stream)
    return (time.perf_counter() - began) / repeats


def write_large(folder: Path, info: DataInfo) -> Dataset:
    """LARGE bytes of latents, whose shards repeat one shard's rows; memory holds one."""
    rows = noise_rows(info, ROWS_PER_SHARD)
    size = sum(values.nbytes for values in rows.values())
    with whole_folder(folder) as working:
        shards = [write_shard(working, number, rows) for number in range(-(-LARGE // size))]
        write_manifest(working, shards, value_range=(0, 0), classes=info.classes, statistics=info.statistics)
    return Dataset(folder)


def anonymous_mib() -> float:
    """This process's memory that is not backed by files."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def read_limited(folder: str, batch_size: int) -> None:
    """The limited process: prints what it read, how fast, and its memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    torch.set_num_threads(1)
    dataset = Dataset(Path(folder))
    loader_seconds(dataset, batch_size, REPEATS)
    early = anonymous_mib()
    seconds = loader_seconds(dataset, batch_size, 10 * REPEATS)
    facts = {"rows": len(dataset), "seconds": seconds, "early_mib": early, "late_mib": anonymous_mib()}
    print(json.dumps(facts))


def main() -> None:
    as_a_worker()
    family, info, batch_size = demo("ldm")
    with tempfile.TemporaryDirectory() as temporary:
        dataset = write_noise(Path(temporary) / "latents", info, 1438)
        step = batch_size / fit_rate(family, dataset, batch_size, STEPS, 3)
        alone = loader_seconds(dataset, batch_size, REPEATS)
        large = Path(temporary) / "large"
        write_large(large, info)
        command = [sys.executable, "-c", f"from {__spec__.name} import *; read_limited({str(large)!r}, {batch_size})"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    limited = json.loads(done.stdout)
    percent = {"small": 100 * alone / step, "larger than memory": 100 * limited["seconds"] / step}
    emit(
        "loader_overhead",
        round(max(percent.values()), 2),
        "% of a step",
        "< 2",
        percent={name: round(value, 2) for name, value in percent.items()},
        step_ms=round(1000 * step, 1),
        disk_gib=LARGE / 2**30,
        limit_gib=LIMIT / 2**30,
        unshared_mib=[round(limited["early_mib"]), round(limited["late_mib"])],
        rows=limited["rows"],
    )


if __name__ == "__main__":
    main()
