"""Batches of a data set with buckets, by any number of workers and from any step on: all must be the same, and each of
one bucket. Beside it how evenly an epoch goes through the rows, and what a batch costs."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from components.data.crops import CropConfig, image_columns
from components.data.dataset import Batch, Dataset, batches, rows_of_batch, write_buckets, write_manifest
from pipelines.prepare import counted
from tests.benchmarks.common import emit

MAIN, ROWS, BATCH, STEPS, SEED = (32, 32), 600, 24, 75, 5  # three epochs
CONFIG = CropConfig(cover=1.25, frame=1.5, aspect=2)
WORLDS = (1, 2, 3)


def write(folder: Path) -> Dataset:
    """Images of noise of many aspects, in buckets."""
    random = np.random.default_rng(0)
    folder.mkdir()

    def rows():
        for number in range(ROWS):
            height, width = random.integers(40, 120, 2)
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
            yield image_columns(image, (3, *MAIN), CONFIG) | {"number": np.array(number)}

    buckets, sizes = write_buckets(folder, rows(), 64), CONFIG.sizes(MAIN)
    write_manifest(
        folder,
        [shard for part in buckets.values() for shard in part],
        {sizes[number]: len(part) for number, part in buckets.items()},
        value_range=(0, 255),
    )
    return Dataset(folder)


def differ(one: Batch, other: Batch) -> bool:
    """Whether two batches are not the same bit for bit."""
    if one.columns.keys() != other.columns.keys() or not torch.equal(one.draws.keys, other.draws.keys):
        return True
    return not all(torch.equal(values, other.columns[name]) for name, values in one.columns.items())


def together(parts: list[Batch]) -> Batch:
    """The global batch of every rank's part."""
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Batch(columns, type(parts[0].draws)(torch.cat([part.draws.keys for part in parts])))


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        dataset = write(Path(temporary) / "set")
        whole = list(itertools.islice(batches(dataset, BATCH, seed=SEED, crops=True), STEPS))
        wrong, compared = 0, 0
        for world in WORLDS:
            streams = [batches(dataset, BATCH, rank, world, SEED, crops=True) for rank in range(world)]
            for batch in whole:
                wrong, compared = wrong + differ(batch, together([next(stream) for stream in streams])), compared + 1
        for start in range(STEPS):
            resumed = next(batches(dataset, BATCH, seed=SEED, start=start, crops=True))
            wrong, compared = wrong + differ(whole[start], resumed), compared + 1
        starts = torch.tensor([rows.start for rows in dataset.buckets])
        found = [rows_of_batch(dataset, step, BATCH, SEED, crops=True) for step in range(STEPS)]
        mixed = sum(len(torch.bucketize(rows, starts, right=True).unique()) > 1 for rows in found)
        times = torch.bincount(torch.cat(found), minlength=ROWS)
        began = time.perf_counter()
        for step in range(10_000):
            rows_of_batch(dataset, 1_000_000 + step, BATCH, SEED, crops=True)
        order_us = (time.perf_counter() - began) / 10_000 * 1e6
    emit(
        "bucket_order",
        wrong + mixed,
        "batches that differ or are mixed",
        "0",
        compared=compared,
        buckets=list(counted(dataset)),
        epochs=STEPS * BATCH / ROWS,
        times_a_row=[int(times.min()), int(times.max())],
        order_us_a_batch=round(order_us, 1),
    )


if __name__ == "__main__":
    main()
