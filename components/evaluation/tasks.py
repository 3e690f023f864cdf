"""The two kinds of work that evaluation spreads over workers: describing real images, and sampling.

A worker is built from an order that can be sent to another machine, and answers one numbered part at a time; the
answer depends on the part alone, so a set is the same however many workers share it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from components.artifacts import run_folder
from components.config import Strict
from components.data.dataset import Dataset, Shard, write_shard
from components.errors import ConfigError, DataError
from components.evaluation import generation, pretrained
from components.evaluation.extractor import Extractor, judge_extractor
from components.evaluation.protocol import ExtractorConfig
from components.families.base import Sampler
from components.metrics.frechet import Sums
from components.sampling.requests import Request

KEPT_IMAGES = 10_000  # of a set that figures on pixels and pictures look at


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Seen(NamedTuple):
    """What is known of N images. `vectors`: (N, D) float32, the extractor's features. `logits`: (N, K) float32, the
    extractor's own classes, or None. `judged`: (N, num_classes) float32, the judge's, or None without a judge."""

    vectors: Tensor
    logits: Tensor | None
    judged: Tensor | None

    @staticmethod
    def joined(parts: list[Seen]) -> Seen:
        return Seen(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Extractors:
    """The extractor that distances are measured with, and the judge of classes; often one and the same."""

    extractor: Extractor
    judge: Extractor | None

    @staticmethod
    def open(config: ExtractorConfig, judge: Path | None, device: str) -> Extractors:
        """`judge` is the folder of the trained one. Raises ConfigError without one if it is to be the extractor."""
        judging = None if judge is None else judge_extractor(run_folder.load(judge, device), judge.name)
        if config.name != "judge":
            return Extractors(pretrained.build(config, device), judging)
        if judging is None:
            raise ConfigError(
                "params.yaml.inputs: expected evaluate/judge: runs/..., which evaluate.extractor judge needs, or "
                "another extractor"
            )
        return Extractors(judging, judging)

    def look(self, images: Tensor) -> Seen:
        """Rows (N, C, ...) in [-1, 1]."""
        vectors, logits = self.extractor.embed(images)
        one = self.judge is self.extractor
        judged = None if self.judge is None else logits if one else self.judge.embed(images).logits
        # float32 is what the networks computed in
        return Seen(*(None if found is None else found.float() for found in (vectors, None if one else logits, judged)))

    def refuse_unless_fits(self, folder: Path, shape: tuple[int, ...]) -> None:
        """Raises DataError of images that the judge was not trained for."""
        if self.judge is not None and shape != self.judge.shape:
            raise DataError(f"{folder}: images of shape {shape}; the judge was trained on {self.judge.shape}")


@dataclass(frozen=True)
class DescribeTask:
    """An order: what the extractors see of each image of `images`, written as shards of `target`."""

    images: Path
    target: Path
    extractor: ExtractorConfig
    judge: Path | None
    batch_size: int

    def worker(self, extractors: Extractors | None = None) -> Callable[[int], tuple[Shard, Sums]]:
        """Describes one shard. Extractors that are open may be lent."""
        extractors = extractors or Extractors.open(self.extractor, self.judge, default_device())
        return functools.partial(self._describe, extractors, Dataset(self.images))

    def _describe(self, extractors: Extractors, dataset: Dataset, number: int) -> tuple[Shard, Sums]:
        rows = torch.from_numpy(dataset.shard_rows(number)).split(self.batch_size)
        seen = Seen.joined([extractors.look(dataset.rows(part)) for part in rows])
        columns = {name: column.numpy() for name, column in seen._asdict().items() if column is not None}
        return write_shard(self.target, number, columns), Sums.streamed(seen.vectors.split(4096))


@dataclass(frozen=True)
class SampledBatch:
    """One batch of a generated set. `images`: (n, C, ...) as stored, or None beyond those that are kept."""

    seen: Seen
    images: Tensor | None
    seconds: float


@dataclass(frozen=True)
class SampleTask:
    """An order: the set of images that `seed` stands for, by a trained sampler with one candidate's settings. Part k
    is the k-th batch."""

    run: Path
    candidate: dict
    num_samples: int
    batch_size: int
    seed: int
    extractor: ExtractorConfig
    judge: Path | None
    captions: generation.Captions | None = None
    weights: Path | None = None  # of the extractor, where they are a file or folder rather than a name

    @property
    def parts(self) -> range:
        return range(-(-self.num_samples // self.batch_size))

    def worker(
        self, sampler: tuple[Sampler, Strict] | None = None, extractors: Extractors | None = None
    ) -> Callable[[int], SampledBatch]:
        """Samples one batch and looks at it. A sampler with its settings, and extractors, that are open may be lent."""
        weights = {"weights": str(self.weights)} if self.weights else {}
        extractors = extractors or Extractors.open(
            self.extractor.model_copy(update=weights), self.judge, default_device()
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
            extractors.look(made.images),
            sampler.medium.to_stored(made.images) if start < KEPT_IMAGES else None,
            made.seconds,
        )
