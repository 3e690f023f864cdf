"""Tasks that evaluation spreads over workers: describing real images by their features, and sampling.

A task can be sent to another machine. Its worker answers one numbered part at a time; the answer depends on the part
alone, so a set is the same however many workers share it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from components.config import Strict
from components.data.dataset import Dataset, Shard, write_shard
from components.devices import default_device
from components.evaluation import generation
from components.evaluation.features import Extractors, Features
from components.evaluation.protocol import ExtractorConfig
from components.families.base import Sampler
from components.metrics.frechet import Sums
from components.sampling.requests import Request

KEPT_IMAGES = 10_000  # of a set, for figures on pixels and for pictures


@dataclass(frozen=True)
class DescribeTask:
    """Describe task: the features of each image of `images`, written as shards of `target`."""

    images: Path
    target: Path
    extractor: ExtractorConfig
    judge: Path | None
    batch_size: int
    clip: Path | None = None

    def worker(self, extractors: Extractors | None = None) -> Callable[[int], tuple[Shard, Sums]]:
        """Describes one shard. Extractors that are open may be lent."""
        extractors = extractors or Extractors.open(self.extractor, self.judge, default_device(), self.clip)
        return functools.partial(self._describe, extractors, Dataset(self.images))

    def _describe(self, extractors: Extractors, dataset: Dataset, number: int) -> tuple[Shard, Sums]:
        rows = torch.from_numpy(dataset.shard_rows(number)).split(self.batch_size)
        features = Features.joined([extractors.features(dataset.rows(part), dataset.medium) for part in rows])
        columns = {name: column.numpy() for name, column in features._asdict().items() if column is not None}
        return write_shard(self.target, number, columns), Sums.streamed(features.vectors.split(4096))


@dataclass(frozen=True)
class SampledBatch:
    """One batch of a generated set. `images`: (n, C, ...) as stored, or None beyond those that are kept."""

    features: Features
    images: Tensor | None
    seconds: float


@dataclass(frozen=True)
class SampleTask:
    """Sample task: the set of images that `seed` stands for, by a trained sampler with one candidate's settings. Part
    k is the k-th batch."""

    run: Path
    candidate: dict
    num_samples: int
    batch_size: int
    seed: int
    extractor: ExtractorConfig
    judge: Path | None
    captions: generation.Captions | None = None
    weights: Path | None = None  # of the extractor, where they are a file or folder rather than a name
    clip: Path | None = None

    @property
    def parts(self) -> range:
        return range(-(-self.num_samples // self.batch_size))

    def worker(
        self, sampler: tuple[Sampler, Strict] | None = None, extractors: Extractors | None = None
    ) -> Callable[[int], SampledBatch]:
        """Samples one batch and extracts its features. A sampler with its settings, and extractors, that are open may
        be lent."""
        weights = {"weights": str(self.weights)} if self.weights else {}
        extractors = extractors or Extractors.open(
            self.extractor.model_copy(update=weights), self.judge, default_device(), self.clip
        )
        return functools.partial(self._sample, *(sampler or self.open(default_device())), extractors)

    def open(self, device: str) -> tuple[Sampler, Strict]:
        return generation.open_candidate(self.run, self.candidate, device, str(self.run))

    def _request(self, sampler: Sampler, settings: Strict, start: int, stop: int) -> Request:
        return generation.request(sampler, settings, start, stop, self.seed, self.captions)

    def _sample(self, sampler: Sampler, settings: Strict, extractors: Extractors, part: int) -> SampledBatch:
        start = part * self.batch_size
        stop = min(start + self.batch_size, self.num_samples)
        made = generation.generate(sampler, self._request(sampler, settings, start, stop))
        return SampledBatch(
            extractors.features(made.images, sampler.medium),
            sampler.medium.to_stored(made.images) if start < KEPT_IMAGES else None,
            made.seconds,
        )
