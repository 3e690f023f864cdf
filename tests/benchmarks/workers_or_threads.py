"""The default of `cluster.num_workers` on one machine: one worker with all threads, or one worker a core?

Each trains the demo's U-Net shape through Ray Train for the same global batches; the figure is how many times the
images per second of the second the first reaches.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from components.data import read_manifest, write_manifest, write_shards
from components.families import FAMILIES
from components.families.base import data_info
from components.files import whole_folder
from components.training import TrainingConfig
from infra import ray_train
from infra.config import ClusterConfig
from infra.ray_session import session
from pipelines.train import ROOT
from tests.benchmarks.common import emit

STEPS, SKIPPED = 24, 8


class Rates:
    """A tracker's stand-in: keeps when each report came."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def figures(self, step: int, figures: dict[str, float]) -> None:
        if "images_per_second" in figures:
            self.seen[step] = step / figures["images_per_second"]  # seconds since the first step, per row

    def picture(self, name: str, png: bytes) -> None:
        pass

    def rate(self) -> float:
        """Images per second after the first steps, which warm up."""
        first, last = min(self.seen), max(self.seen)
        return (last - first) / (self.seen[last] - self.seen[first])


def measure(images: Path, storage: Path, num_workers: int) -> float:
    kind = FAMILIES["vae"]
    job = ray_train.Job(
        name=f"workers{num_workers}",
        family="vae",
        config=kind.Config(),
        info=data_info(read_manifest(images)),
        training=TrainingConfig(steps=STEPS, batch_size=128, report_every=SKIPPED, save_every=STEPS),
        seed=0,
        data=str(images),
        data_hash="benchmark",
        code_hash="benchmark",
    )
    rates = Rates()
    cluster = ClusterConfig(num_workers=num_workers)
    with session(cluster, ROOT):
        ray_train.train(job, cluster, storage / str(num_workers), rates)
    return rates.rate()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pixels = np.random.default_rng(0).integers(0, 256, (1024, 1, 16, 16), dtype=np.uint8)
        rows = ({"image": image, "label": np.asarray(0)} for image in pixels)
        with whole_folder(folder / "images") as working:
            write_manifest(working, write_shards(working, rows, 1024), value_range=(0, 255), classes=("noise",))
        cores = os.cpu_count() or 1
        one, many = (measure(folder / "images", folder / "storage", num_workers) for num_workers in (1, cores))
        emit(
            "workers_or_threads",
            round(one / many, 3),
            f"images/s of 1 worker with {cores} threads / {cores} workers with 1",
            "the default takes the faster",
            one_worker=round(one, 1),
            one_worker_a_core=round(many, 1),
        )


if __name__ == "__main__":
    main()
