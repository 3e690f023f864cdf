"""What a second worker on this machine is worth: two workers of one thread against one of one thread (half the cores),
and against one worker with all threads, which decides the default of `cluster.num_workers` here.

Each trains the demo's autoencoder through Ray Train for the same global batches. Scaling efficiency is the images/s of
two workers over twice those of one; 1 would be perfect.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from components.training.loop import TrainingConfig
from infra import ray_train
from infra.config import ClusterConfig
from infra.ray_cluster.ray_session import session
from pipelines.support.paths import ROOT
from tests.benchmarks.common import demo, emit, write_noise

STEPS, SKIPPED = 32, 8


class Rates:
    """A tracker's stand-in: keeps when each report came."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def figures(self, step: int, figures: dict[str, float]) -> None:
        if "images_per_second" in figures:
            self.seen[step] = step / figures["images_per_second"]  # seconds since the first step, per row

    def validated(self, step: int, figures: dict[str, float]) -> None:
        pass

    def picture(self, name: str, png: bytes) -> None:
        pass

    def rate(self) -> float:
        """Images per second after the first steps, which warm up."""
        first, last = min(self.seen), max(self.seen)
        return (last - first) / (self.seen[last] - self.seen[first])


def measure(images: Path, storage: Path, num_workers: int, threads: int) -> float:
    family, info, batch_size = demo("vae")
    job = ray_train.Job(
        name=f"workers{num_workers}threads{threads}",
        family="vae",
        config=family.config,
        info=info,
        training=TrainingConfig(steps=STEPS, batch_size=batch_size, report_every=SKIPPED, save_every=STEPS),
        seed=0,
        data=str(images),
        data_hash="benchmark",
        code_hash="benchmark",
    )
    rates = Rates()
    cluster = ClusterConfig(num_workers=num_workers, threads_per_worker=threads)
    with session(cluster, ROOT):
        ray_train.train(job, cluster, storage, rates)
    return rates.rate()


def main() -> None:
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        images, storage = Path(temporary) / "images", Path(temporary) / "storage"
        write_noise(images, demo("vae")[1], 1024)
        half, two, all_threads = (
            measure(images, storage, num_workers, threads) for num_workers, threads in ((1, 1), (2, 1), (1, cores))
        )
    emit(
        "scaling_2_workers",
        round(two / (2 * half), 3),
        "images/s of 2 workers with 1 thread / twice those of 1 worker with 1 thread",
        ">= 0.85",
        one_worker_one_thread=round(half, 1),
        two_workers_one_thread=round(two, 1),
        **{f"one_worker_{cores}_threads": round(all_threads, 1)},
        one_worker_to_two=round(all_threads / two, 3),
    )


if __name__ == "__main__":
    main()
