"""Fréchet statistics of 60,000 x 2048 features: seconds, and how much memory a process grows by for them.

python -m tests.benchmarks.frechet_60k_s

Features stream from shards as `pipelines.reference` writes them; the distance to a reference of the same size is in the
time. Peer: the formula as it is usually computed, numpy.cov of the whole set and scipy.linalg.sqrtm.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from components.data import Dataset, write_manifest, write_shard
from components.metrics.frechet import Moments, frechet_distance
from tests.benchmarks.common import emit

COUNT, DIM, SHARD = 60_000, 2048, 5_000


def write_features(folder: Path) -> None:
    """Correlated features, a shard at a time; made once, so that their making is in no figure."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((DIM, DIM), dtype=np.float32) / np.sqrt(DIM)
    shards = [
        write_shard(folder, number, {"vectors": generator.standard_normal((SHARD, DIM), dtype=np.float32) @ mix})
        for number in range(COUNT // SHARD)
    ]
    write_manifest(folder, shards, value_range=(0, 1))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def usual(features: np.ndarray, reference: Moments) -> float:
    """Seconds of the usual way, its features in memory already."""
    import scipy.linalg

    start = time.perf_counter()
    covariance = np.cov(features, rowvar=False)
    root = scipy.linalg.sqrtm(covariance @ reference.covariance.numpy())
    np.trace(covariance + reference.covariance.numpy() - 2 * root.real)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "features"
        write_features(folder)
        dataset = Dataset(folder)
        reference = Moments.of(torch.eye(DIM).repeat(2, 1))
        before = peak_gib()
        start = time.perf_counter()
        moments = Moments.streamed(chunk["vectors"] for chunk in dataset.chunks(4096))
        counted = time.perf_counter() - start
        distance = frechet_distance(moments, reference)
        seconds = time.perf_counter() - start
        grown, peak = peak_gib() - before, peak_gib()
        features = np.concatenate([chunk["vectors"].numpy() for chunk in dataset.chunks(4096)])
        theirs = usual(features, reference)
    more = {"moments_s": round(counted, 2), "distance": round(distance, 4), "numpy_scipy_s": round(theirs, 2)}
    emit("frechet_60k_s", round(seconds, 2), "s", "< 20", **more)
    emit("frechet_60k_gib", round(peak, 3), "GiB, the whole process", "< 1", grown_by=round(grown, 3))


if __name__ == "__main__":
    main()
