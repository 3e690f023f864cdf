"""Measurement of candidates: the real images that they are held against, sampling, figures and pictures. Shared by
reference, evaluate and promote."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from components.artifacts import run_folder
from components.conditioning.classes import told_of
from components.config import Strict
from components.data.dataset import Dataset, Manifest, spread, spread_over
from components.data.media.image import MEDIUM as IMAGES
from components.devices import default_device
from components.errors import ConfigError, InputError, SamplerError
from components.evaluation import generation, pretrained, selection
from components.evaluation.extractor import clip_scorer, no_figures, weights_hash
from components.evaluation.features import Extractors, Features
from components.evaluation.protocol import REVISION, EvaluateConfig, Protocol, library_versions
from components.evaluation.set_figures import CAPTION, Perception, Real, Reference, set_figures
from components.evaluation.tasks import KEPT_IMAGES, SampledBatch, SampleTask
from components.families.base import JUDGE, Sampler
from components.likelihood.contract import bits_figures
from components.metrics.figures import Figures, under, values
from components.metrics.frechet import Moments
from components.metrics.modes import collapsed
from components.metrics.principal import PixelReference
from infra.progress import told
from infra.ray_cluster.worker_pool import WorkerPool
from pipelines.support import paths
from pipelines.support.inputs import CLIP
from pipelines.support.params import Params

MOMENTS = "moments.safetensors"
# of how to measure, what the figures depend on; weights' paths do not, their hashes stand for them
_OF_PROTOCOL = {"num_samples", "batch_size", "neighbours", "neighbour_images", "resamples", "seed", "likelihood_rows"}
_TIMED = 4  # batches behind a time, the first to warm up, where many workers sample and none is alone


@dataclass(frozen=True)
class Measurement:
    """The real images, their features, and the protocol. `test_labels` (M,) are those of all of `test`, empty where it
    has none; `train_labels` (N,) those of `train`, None where there are no classes."""

    config: EvaluateConfig
    protocol: Protocol
    real: Real
    train: Dataset
    test: Dataset
    train_features: Features
    test_features: Features
    test_labels: Tensor
    train_labels: Tensor | None
    perception: Perception


def judge_folder(params: Params) -> Path | None:
    """The run of the judge that `inputs` gives `evaluate`, or None."""
    return _given(params, JUDGE)


def clip_folder(params: Params) -> Path | None:
    """That of the CLIP, likewise."""
    return _given(params, CLIP)


def _given(params: Params, role: str) -> Path | None:
    folder = params.inputs_of("evaluate").get(role)
    # by the name that it has here, which the protocol tells, also where it is a link
    return None if folder is None else folder.absolute()


def open_extractors(params: Params, device: str) -> Extractors:
    """The extractor and the judge that params.yaml names. Raises InputError of one that is not there."""
    return Extractors.open(params.evaluate.extractor, judge_folder(params), device, clip_folder(params))


def read_features(split: str) -> tuple[Features, Manifest]:
    """A description as `reference` wrote it. Raises InputError if it is missing."""
    folder = paths.REFERENCE / split
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; expected what `python -m pipelines.reference` writes")
    described = Dataset(folder)
    columns = described.take(torch.arange(len(described)))
    return Features(*(columns.get(name) for name in Features._fields)), described.manifest


def _described(split: str, extractors: Extractors) -> tuple[Features, Manifest]:
    """The same, as these extractors would write it now. Raises InputError of what others wrote."""
    features, facts = read_features(split)
    judge_hash = "" if extractors.judge is None else extractors.judge.weights_hash
    if (facts.source["extractor_hash"], facts.source["judge_hash"]) != (extractors.extractor.weights_hash, judge_hash):
        raise InputError(f"{paths.REFERENCE}: describes images by other weights; run pipelines.reference again")
    if features.pixels is None:
        raise InputError(f"{paths.REFERENCE}: of an earlier version, without pixels; run pipelines.reference again")
    return features, facts


def open_measurement(params: Params, extractors: Extractors) -> Measurement:
    """Reads the descriptions of the real images. Raises InputError if missing, or of other images or extractors."""
    config = params.evaluate
    train_features, train_facts = _described("train", extractors)
    test_features, test_facts = _described("test", extractors)
    train, test = Dataset(paths.TRAIN_IMAGES), Dataset(paths.TEST_IMAGES)
    tensors = safetensors.torch.load_file(paths.REFERENCE / "test" / MOMENTS)
    moments = Moments(int(tensors["count"]), tensors["mean"], tensors["covariance"])
    shown = spread_over(len(test), min(len(test), KEPT_IMAGES))
    images = test.take(shown)
    labels, train_labels = test.labels(), train.labels()
    known_labels, known_train_labels = (part if test.manifest.classes else None for part in (labels, train_labels))
    real = Real(
        Reference.of(test_features.vectors, config, moments, known_labels, test_features.judged),
        train_features.vectors,
        test.medium.rows(images),
        labels[shown] if len(labels) else labels,  # of data without any
        test.manifest.classes,
        test.medium.figures,
        test.medium.seen,
        PixelReference.of(train_features.pixels, test_features.pixels),
        str(test.manifest.source.get("caption", CAPTION)),
        no_figures if extractors.judge is None else extractors.judge.figures,
    )
    perception, perceived_by = open_perception(config, test, clip_folder(params))
    protocol = Protocol(
        extractor=extractors.extractor.name,
        extractor_hash=extractors.extractor.weights_hash,
        judge_hash=test_facts.source["judge_hash"],
        resize=extractors.extractor.resize,
        reference=paths.TEST_IMAGES.name,
        reference_hash=str(test_facts.source["data"]),
        reference_count=len(test),
        train_hash=str(train_facts.source["data"]),
        row_shape=test.row_shape,
        versions=library_versions(*extractors.extractor.libraries),
        revision=REVISION,
        **config.model_dump(include=_OF_PROTOCOL),
        **perceived_by,
    )
    return Measurement(
        config, protocol, real, train, test, train_features, test_features, labels, known_train_labels, perception
    )


def open_perception(
    config: EvaluateConfig, images: Dataset, clip: Path | None = None
) -> tuple[Perception, dict[str, str]]:
    """The optional measures that are asked for, and the hashes of their weights. `clip`: the run of one's own, which
    scores unless a pretrained one is asked for. Raises ConfigError where they do not take what the data set holds."""
    for name in ("lpips", "clip_score"):
        if getattr(config, name) and images.medium is not IMAGES:
            expected = f"expected '' for {images.medium.plural}, which {images.folder} holds"
            raise ConfigError(f"evaluate.{name}: it measures {IMAGES.plural}; {expected}")
    device, none = default_device(), (None, "")
    lpips, lpips_hash = pretrained.lpips(config.lpips, device) if config.lpips else none
    clip_score, clip_hash = pretrained.clip_scorer(config.clip_score, device) if config.clip_score else none
    if clip is not None and not config.clip_score:
        run = run_folder.load(clip, device)
        if run.config.data.shape != images.row_shape:
            found = f"{images.folder} holds {images.medium.plural} of shape {images.row_shape}"
            raise ConfigError(f"inputs: evaluate/{CLIP}: {clip} was trained on {run.config.data.shape}; {found}")
        clip_score, clip_hash = clip_scorer(run), weights_hash(run)
    return Perception(lpips, clip_score), {"lpips": lpips_hash, "clip_score": clip_hash}


@dataclass(frozen=True)
class Measured:
    """A measured candidate: all its settings, its figures, why it counts as collapsed (or empty), its grid, its images
    nearest to training ones above those, its least convincing."""

    settings: dict
    figures: Figures
    collapsed: str
    grid: Tensor
    nearest: Tensor
    failures: Tensor | None


def sampling(params: Params, run: Path, candidate: dict) -> SampleTask:
    """The task of sampling a candidate's evaluation set."""
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
        clip_folder(params),
    )


def sample(
    workers: WorkerPool, task: SampleTask, ready: tuple[Sampler, Strict], extractors: Extractors
) -> list[SampledBatch]:
    """Samples the set on all workers. `ready`, `extractors`: the sampler and the extractors open in this process."""
    make: Callable = task.worker if workers.spreads else functools.partial(task.worker, ready, extractors)
    done = workers.map(make, task.parts)
    plural = ready[0].medium.plural
    return list(told(done, task.run.name, plural, task.num_samples, lambda batch: len(batch.features.vectors)))


def ms_per_image(
    workers: WorkerPool, task: SampleTask, batches: list[SampledBatch], ready: tuple[Sampler, Strict]
) -> float:
    """Milliseconds per image, timed with no other worker running: workers that share a machine slow each other."""
    sizes = [len(batch.features.vectors) for batch in batches]
    if not workers.spreads:
        return generation.ms_per_image(list(zip(sizes, (batch.seconds for batch in batches), strict=True)))
    requests = generation.requests(*ready, max(sizes) * _TIMED, task.seed, max(sizes), task.captions)
    times = [generation.generate(ready[0], request).seconds for request in requests]
    return generation.ms_per_image([(max(sizes), seconds) for seconds in times[1:]])


def load_sampler(folder: Path, measurement: Measurement, device: str) -> run_folder.Run:
    """A trained sampler that fits the data. Raises SamplerError if its run folder is damaged or made for others."""
    run = run_folder.load(folder, device)
    sampler = generation.sampler_of(run)
    if sampler.conditional and sampler.data.classes != measurement.test.manifest.classes:
        raise SamplerError(f"{folder}: was trained on other classes than {paths.TEST_IMAGES} has; train it again")
    return run


def measure(
    workers: WorkerPool,
    task: SampleTask,
    ready: tuple[Sampler, Strict],
    measurement: Measurement,
    extractors: Extractors,
    likelihood: Figures | None = None,
) -> Measured:
    """Samples a candidate's set and measures it. The grid is sampled first and warms up. `likelihood`: what
    likelihood_figures gave of the same weights, where that is known."""
    sampler, settings = ready
    config, captions, real = measurement.config, task.captions, measurement.real
    grid = _sample_grid(task, ready, measurement)
    batches = sample(workers, task, ready, extractors)
    features = Features.joined([batch.features for batch in batches])
    images = sampler.medium.to_floats(torch.cat([batch.images for batch in batches if batch.images is not None]))
    labels = generation.wanted_labels(sampler, captions, len(features.vectors))
    prompts = generation.request(sampler, settings, 0, len(images), config.seed, captions).conditions.prompt
    figures = set_figures(features, images, labels, real, config, measurement.perception, prompts)
    ms = ms_per_image(workers, task, batches, ready)
    figures |= generation.cost_figures(sampler, settings, ms, config.seed, captions)
    figures |= sampler.figures(images, real.images)
    figures |= likelihood_figures(sampler, measurement) if likelihood is None else likelihood
    samples, trained_on = selection.closest_to_training(features, len(images), real)
    pairs = torch.cat([images[samples], measurement.train.rows(trained_on)])
    worst = None
    if labels is not None and features.judged is not None:
        worst = images[selection.least_convincing(features, len(images), labels)]
    return Measured(
        task.candidate | settings.model_dump(mode="json"),
        under(measurement.protocol.id, figures),
        collapsed(values(figures), len(real.classes), real.reference.judged_shares) or "",
        grid,
        pairs,
        worst,
    )


def likelihood_figures(sampler: Sampler, measurement: Measurement) -> Figures:
    """The bits per dimension of held-out and of training rows, evenly spread; none of a sampler without likelihood, nor
    of latents unless they are asked for."""
    likelihood, config = sampler.likelihood, measurement.config
    if likelihood is None or (likelihood.latents and not config.latent_likelihood):
        return {}
    wanted = min(config.likelihood_rows, likelihood.most_rows or math.inf)
    count = min(wanted, len(measurement.test), len(measurement.train))

    def rows(dataset: Dataset) -> tuple[Tensor, Tensor | None]:
        columns = spread(dataset, count)
        device = next(sampler.nets.parameters()).device
        told = told_of(columns)
        return dataset.medium.rows(columns).to(device), None if told is None else told.to(device)

    return bits_figures(likelihood, rows(measurement.test), rows(measurement.train))


def _sample_grid(task: SampleTask, ready: tuple[Sampler, Strict], measurement: Measurement) -> Tensor:
    config = measurement.config
    request = generation.grid_request(*ready, config.seed, task.captions)
    grid = torch.cat([generation.generate(ready[0], part).images for part in request.split(config.batch_size)])
    if tuple(grid.shape[1:]) != measurement.protocol.row_shape:
        raise SamplerError(
            f"makes images of shape {tuple(grid.shape[1:])}; {paths.TEST_IMAGES} has {measurement.protocol.row_shape}"
        )
    return grid


def row(figures: Figures) -> str:
    """The first figure of each kind in one line, for the terminal."""
    first = {figure.definition.kind: figure for figure in reversed(figures.values())}
    shown = [figure for figure in figures.values() if first[figure.definition.kind] is figure]
    return "  ".join(f"{figure.name} {figure.value:.4g}" for figure in shown)
