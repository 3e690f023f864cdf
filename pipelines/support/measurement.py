"""What every candidate is measured against, and how one is measured: shared by reference, evaluate and promote."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from components.artifacts import run_folder
from components.config import Strict
from components.data.dataset import Dataset, Manifest
from components.errors import InputError, SamplerError
from components.evaluation import generation, measuring, pretrained
from components.evaluation.measuring import Perception, Real
from components.evaluation.protocol import EvaluateConfig, Protocol, library_versions
from components.evaluation.quality import Reference
from components.evaluation.tasks import KEPT_IMAGES, Extractors, SampledBatch, SampleTask, Seen, default_device
from components.families.base import JUDGE, Sampler
from components.metrics.frechet import Moments
from infra.ray_cluster.worker_pool import WorkerPool
from pipelines.support import paths
from pipelines.support.params import Params

MOMENTS = "moments.safetensors"
FIGURES = ("frechet_distance", "precision", "recall", "density", "coverage", "kid", "label_agreement", "ms_per_image")
_TIMED = 4  # batches behind a time, the first to warm up, where many workers sample and none is alone


@dataclass(frozen=True)
class Measurement:
    """The real images, what is seen of them, and the protocol. `test_labels` (M,) are those of all of `test`, empty
    where it has none."""

    config: EvaluateConfig
    protocol: Protocol
    real: Real
    train: Dataset
    test: Dataset
    train_seen: Seen
    test_seen: Seen
    test_labels: Tensor
    perception: Perception


def judge_folder(params: Params) -> Path | None:
    """The run of the judge that `inputs` gives `evaluate`."""
    folder = params.inputs_of("evaluate").get(JUDGE)
    # by the name that it has here, which the protocol tells, also where it is a link
    return None if folder is None else folder.absolute()


def open_extractors(params: Params, device: str) -> Extractors:
    return Extractors.open(params.evaluate.extractor, judge_folder(params), device)


def read_seen(split: str) -> tuple[Seen, Manifest]:
    """A description as `reference` wrote it. Raises InputError if it is missing."""
    folder = paths.REFERENCE / split
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; expected what `python -m pipelines.reference` writes")
    described = Dataset(folder)
    columns = described.take(torch.arange(len(described)))
    return Seen(*(columns.get(name) for name in Seen._fields)), described.manifest


def open_measurement(params: Params, extractors: Extractors) -> Measurement:
    """Reads the descriptions of the real images. Raises InputError if missing, or of other images or extractors."""
    config = params.evaluate
    train_seen, train_facts = read_seen("train")
    test_seen, test_facts = read_seen("test")
    train, test = Dataset(paths.TRAIN_IMAGES), Dataset(paths.TEST_IMAGES)
    judge_hash = "" if extractors.judge is None else extractors.judge.weights_hash
    for facts in (train_facts, test_facts):
        described_by = (facts.source["extractor_hash"], facts.source["judge_hash"])
        if described_by != (extractors.extractor.weights_hash, judge_hash):
            raise InputError(f"{paths.REFERENCE}: describes images by other weights; run pipelines.reference again")
    tensors = safetensors.torch.load_file(paths.REFERENCE / "test" / MOMENTS)
    moments = Moments(int(tensors["count"]), tensors["mean"], tensors["covariance"])
    images = test.take(torch.arange(min(len(test), KEPT_IMAGES)))
    real = Real(
        Reference.of(test_seen.vectors, config, moments),
        train_seen.vectors,
        test.medium.rows(images),
        images.get("label", torch.empty(0, dtype=torch.int64)),
        test.manifest.classes,
    )
    perception, perceived_by = open_perception(config)
    protocol = Protocol(
        extractor=extractors.extractor.name,
        extractor_hash=extractors.extractor.weights_hash,
        judge_hash=judge_hash,
        resize=extractors.extractor.resize,
        reference=paths.TEST_IMAGES.name,
        reference_hash=str(test_facts.source["data"]),
        reference_count=len(test),
        train_hash=str(train_facts.source["data"]),
        image_shape=test.row_shape,
        versions=library_versions(*extractors.extractor.libraries),
        **config.model_dump(exclude={"extractor", "search", "snapshot_samples", "lpips", "clip_score"}),
        **perceived_by,
    )
    labels = torch.cat([columns.get("label", torch.empty(0, dtype=torch.int64)) for columns in test.chunks(4096)])
    return Measurement(config, protocol, real, train, test, train_seen, test_seen, labels, perception)


def open_perception(config: EvaluateConfig) -> tuple[Perception, dict[str, str]]:
    """The optional pretrained measures that are asked for, and the hashes of their weights."""
    device, none = default_device(), (None, "")
    lpips, lpips_hash = pretrained.lpips(config.lpips, device) if config.lpips else none
    clip_score, clip_hash = pretrained.clip_scorer(config.clip_score, device) if config.clip_score else none
    return Perception(lpips, clip_score), {"lpips": lpips_hash, "clip_score": clip_hash}


@dataclass(frozen=True)
class Measured:
    """One candidate: its figures, its grid, its images nearest to training ones above those, its least convincing."""

    figures: dict
    grid: Tensor
    nearest: Tensor
    failures: Tensor | None


def sampling(params: Params, run: Path, candidate: dict) -> SampleTask:
    """The order for a candidate's evaluation set."""
    config = params.evaluate
    weights = Path(config.extractor.weights).absolute() if config.extractor.weights else None
    return SampleTask(
        run.resolve(),
        candidate,
        config.num_samples,
        config.batch_size,
        config.seed,
        config.extractor,
        judge_folder(params),
        generation.Captions.of(Dataset(paths.TEST_IMAGES)),
        weights if weights and weights.exists() else None,
    )


def sample(
    worker_pool: WorkerPool, order: SampleTask, ready: tuple[Sampler, Strict], extractors: Extractors
) -> list[SampledBatch]:
    """Samples the set on all workers. `ready`, `extractors`: the sampler and the extractors open in this process."""
    make: Callable = order.worker if worker_pool.spreads else functools.partial(order.worker, ready, extractors)
    return list(worker_pool.map(make, order.parts))


def ms_per_image(
    worker_pool: WorkerPool, order: SampleTask, pieces: list[SampledBatch], ready: tuple[Sampler, Strict]
) -> float:
    """Of a sampler that has its machine to itself: workers that share one would slow each other."""
    sizes = [len(piece.seen.vectors) for piece in pieces]
    if not worker_pool.spreads:
        return generation.ms_per_image(list(zip(sizes, (piece.seconds for piece in pieces), strict=True)))
    requests = generation.requests(*ready, max(sizes) * _TIMED, order.seed, max(sizes), order.captions)
    times = [generation.generate(ready[0], request).seconds for request in requests]
    return generation.ms_per_image([(max(sizes), seconds) for seconds in times[1:]])


def load_sampler(folder: Path, bench: Measurement, device: str) -> run_folder.Run:
    """A trained sampler that fits the data. Raises SamplerError if its run folder is damaged or made for others."""
    run = run_folder.load(folder, device)
    sampler = generation.sampler_of(run)
    if sampler.conditional and sampler.data.classes != bench.test.manifest.classes:
        raise SamplerError(f"{folder}: was trained on other classes than {paths.TEST_IMAGES} has; train it again")
    return run


def measure(
    worker_pool: WorkerPool,
    order: SampleTask,
    ready: tuple[Sampler, Strict],
    bench: Measurement,
    extractors: Extractors,
) -> Measured:
    """Samples a candidate's set and measures it. The grid is sampled first and warms up."""
    sampler, settings = ready
    config, captions = bench.config, order.captions
    request = generation.grid_request(sampler, settings, config.seed, captions)
    grid = torch.cat([generation.generate(sampler, part).images for part in request.split(config.batch_size)])
    if tuple(grid.shape[1:]) != bench.protocol.image_shape:
        raise SamplerError(
            f"makes images of shape {tuple(grid.shape[1:])}; {paths.TEST_IMAGES} has {bench.protocol.image_shape}"
        )
    pieces = sample(worker_pool, order, ready, extractors)
    seen = Seen.joined([piece.seen for piece in pieces])
    images = sampler.medium.to_floats(torch.cat([piece.images for piece in pieces if piece.images is not None]))
    labels = generation.wanted_labels(sampler, captions, len(seen.vectors))
    prompts = generation.request(sampler, settings, 0, len(images), config.seed, captions).conditions.prompt
    figures = {
        "settings": order.candidate | settings.model_dump(mode="json"),
        **measuring.figures(seen, images, labels, bench.real, config, bench.perception, prompts),
        "ms_per_image": ms_per_image(worker_pool, order, pieces, ready),
        "ms_single": generation.ms_single(sampler, settings, config.seed, captions),
        "network_evaluations": generation.network_evaluations(sampler, settings, captions),
    }
    samples, trained_on = measuring.closest_to_training(seen, len(images), bench.real)
    pairs = torch.cat([images[samples], bench.train.rows(trained_on)])
    worst = None
    if labels is not None and seen.judged is not None:
        worst = images[measuring.least_convincing(seen, len(images), labels)]
    return Measured(figures, grid, pairs, worst)


def row(figures: dict) -> str:
    """Figures in one line, for the terminal."""
    return "  ".join(f"{name} {figures[name]:.4g}" for name in FIGURES if figures.get(name) is not None)
