"""Seconds of the Fréchet statistics of 60,000 x 2048 features and of the distance to a reference.

python -m tests.benchmarks.frechet_60k_s

Features stream from shards, one in memory at a time. Peer: the formula as it is usually computed, numpy.cov of the
whole set in memory and scipy.linalg.sqrtm of the product.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

from components.metrics.frechet import Moments, frechet_distance
from tests.benchmarks.common import emit

COUNT, DIM, SHARD = 60_000, 2048, 4_000


def write_features(folder: Path) -> list[Path]:
    """Correlated features, a file a shard."""
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((DIM, DIM), dtype=np.float32) / np.float32(np.sqrt(DIM))
    paths = [folder / f"{number}.npy" for number in range(COUNT // SHARD)]
    for path in paths:
        np.save(path, generator.standard_normal((SHARD, DIM), dtype=np.float32) @ mix)
    return paths


def read(paths: list[Path]) -> Iterator[torch.Tensor]:
    yield from (torch.from_numpy(np.load(path)) for path in paths)


def some_reference() -> Moments:
    """Of other features than those measured; what it holds does not matter for time or memory."""
    return Moments(COUNT, torch.zeros(DIM).double(), torch.diag(torch.linspace(0.1, 2, DIM).double()))


def measure(paths: list[Path]) -> tuple[float, float, float]:
    """Seconds of the statistics, seconds with the distance, the distance."""
    reference, start = some_reference(), time.perf_counter()
    moments = Moments.streamed(read(paths))
    counted = time.perf_counter() - start
    distance = frechet_distance(moments, reference)
    return counted, time.perf_counter() - start, distance


def usual(paths: list[Path]) -> tuple[float, float]:
    """Seconds of the usual way, reading included, and its distance."""
    reference, start = some_reference(), time.perf_counter()
    features = torch.cat(list(read(paths))).numpy()
    mean, covariance = features.mean(0, dtype=np.float64), np.cov(features, rowvar=False)
    of_reference = reference.covariance.numpy()
    root = scipy.linalg.sqrtm(covariance @ of_reference)
    distance = float((mean**2).sum() + np.trace(covariance + of_reference - 2 * root.real))
    return time.perf_counter() - start, distance


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_features(Path(temporary))
        counted, seconds, distance = measure(paths)
        theirs, same = usual(paths)
    more = {"statistics_s": round(counted, 2), "numpy_scipy_s": round(theirs, 2), "distances": [distance, same]}
    emit("frechet_60k_s", round(seconds, 2), "s", "< 20", **more)


if __name__ == "__main__":
    main()
