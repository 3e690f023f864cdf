"""Describes the real images, once for all samplers: `python -m pipelines.reference` -> reference/.

    reference/train, reference/test   a data set each: the features of every image; moments.safetensors
    reference/known.json              the protocol, and figures of sets that are known: real images, copies, noise

Features stay as they are while data, extractor and judge are the same; only what changed is computed again.
"""

from __future__ import annotations

import functools
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from components.data.dataset import MANIFEST, Dataset, Manifest, read_manifest, verify, write_manifest
from components.data.media import medium
from components.data.randomness import Draws
from components.devices import default_device
from components.errors import DataError
from components.evaluation import generation
from components.evaluation.features import Extractors, Features
from components.evaluation.real_draws import drawn_rows, over_draws, training_bias
from components.evaluation.set_figures import distribution_figures, set_figures, some, without_intervals
from components.evaluation.tasks import DescribeTask
from components.files import sha256, whole_folder, write_json
from components.metrics.classes import JUDGE_ACCURACY, label_agreement
from components.metrics.figures import Figures, definitions_as_json, named
from components.metrics.frechet import Sums
from components.metrics.neighbours import memorised_figure
from components.metrics.principal import SIDES
from infra.progress import told
from infra.ray_cluster.worker_pool import WorkerPool, worker_pool
from pipelines.support import cli, paths
from pipelines.support.measurement import (
    MOMENTS,
    Measurement,
    clip_folder,
    judge_folder,
    open_extractors,
    open_measurement,
    row,
)
from pipelines.support.metrics_files import FLOOR, FLOOR_BY_CHANCE, FLOOR_OF_CAPTIONS, Known, KnownSet
from pipelines.support.params import Params, load
from pipelines.support.paths import ROOT

SPLITS = {"train": paths.TRAIN_IMAGES, "test": paths.TEST_IMAGES}


def origin(images: Path, extractors: Extractors) -> dict[str, str | int | float]:
    """Everything that a description depends on. Two with equal origins are equal."""
    return {
        "data": sha256(images / MANIFEST),
        "extractor": extractors.extractor.name,
        "extractor_hash": extractors.extractor.weights_hash,
        "judge_hash": "" if extractors.judge is None else extractors.judge.weights_hash,
        "resize": extractors.extractor.resize,
        "pixels": f"averaged down to {SIDES}",
    }


def describe(workers: WorkerPool, params: Params, split: str, extractors: Extractors) -> bool:
    """Writes reference/<split> unless it is there already; tells whether it had to. Raises InputError of images that
    are damaged or of another shape than the judge's."""
    images, target = SPLITS[split], paths.REFERENCE / split
    facts = verify(images)
    extractors.refuse_unless_fits(images, Dataset(images).medium, Dataset(images).row_shape)
    wanted = origin(images, extractors)
    if is_whole(target, wanted):
        return False
    config = params.evaluate
    with whole_folder(target) as folder:
        task = DescribeTask(
            images.resolve(),
            folder.resolve(),
            config.extractor,
            judge_folder(params),
            config.batch_size,
            clip_folder(params),
        )
        make = task.worker if workers.spreads else functools.partial(task.worker, extractors)
        done = workers.map(make, range(len(facts.shards)))
        plural = medium(facts.medium).plural
        done = list(told(done, f"reference {split}", plural, facts.count, lambda one: one[0].rows))
        _write_moments(folder / MOMENTS, functools.reduce(Sums.plus, (sums for _, sums in done)))
        shards = [shard for shard, _ in done]
        write_manifest(
            folder,
            shards,
            medium=facts.medium,
            value_range=facts.value_range,
            classes=facts.classes,
            source=wanted,
        )
    return True


def is_whole(folder: Path, wanted: dict) -> bool:
    """Whether a description is there, undamaged and of this origin."""
    try:
        return read_manifest(folder).source == wanted and bool(verify(folder)) and (folder / MOMENTS).is_file()
    except DataError:
        return False


def _write_moments(path: Path, sums: Sums) -> None:
    if sums.count < 2:
        raise DataError(f"{sums.count} image; figures need two or more")
    moments = sums.moments()
    tensors = {"count": torch.tensor(moments.count), "mean": moments.mean, "covariance": moments.covariance}
    safetensors.torch.save_file(tensors, path)


def known_sets(measurement: Measurement, extractors: Extractors) -> tuple[KnownSet, ...]:
    """Figures of sets whose quality is known: real training images under the conditions of each kind of sampler, what a
    perfect one would get; training images handed in as samples, suspicious for their copies alone; uniform pixels,
    what no sampler should get."""
    conditions = asked_classes(measurement)
    floors = [_real(measurement, name, label, wanted) for name, (label, wanted) in conditions.items()]
    _, wanted = next(iter(conditions.values()))
    rows = _drawn(measurement, wanted, 0)
    copy = _of_training_images(measurement, rows, wanted)
    told = "training images handed in as samples: good figures, all copies"
    noise = _of_noise(measurement, extractors)
    return (
        *floors,
        KnownSet("copy", "copy", told, len(rows), copy),
        KnownSet("noise", "noise", "images of uniform pixels", measurement.config.num_samples, noise),
    )


def asked_classes(measurement: Measurement) -> dict[str, tuple[str, Tensor | None]]:
    """The classes that each kind of sampler is asked for, (num_samples,) or None where nobody asks, by the name of the
    known set under these conditions, with its label."""
    count, classes = measurement.config.num_samples, measurement.real.classes
    found: dict[str, tuple[str, Tensor | None]] = {}
    if classes:
        found[FLOOR] = ("real images", torch.arange(count) % len(classes))
    captions = generation.Captions.of(measurement.test)
    if captions is not None and captions.labels is not None and classes:
        labels = torch.tensor(captions.labels)[torch.arange(count) % len(captions.labels)]
        found[FLOOR_OF_CAPTIONS] = ("real images, the captions' classes", labels)
    found[FLOOR_BY_CHANCE] = ("real images, classes by chance" if classes else "real images", None)
    return found


def _drawn(measurement: Measurement, wanted: Tensor | None, draw: int) -> Tensor:
    train, config = measurement.train, measurement.config
    return drawn_rows(wanted, measurement.train_labels, len(train), config.num_samples, config.seed + draw)


def _real(measurement: Measurement, name: str, label: str, wanted: Tensor | None) -> KnownSet:
    """Training images drawn as samples are, many times: figures by the mean and the spread of the draws. Those that
    take the images themselves are of the first draw."""
    config, real = measurement.config, measurement.real
    every = without_intervals(config)
    draws = []
    for draw in range(config.real_draws):
        rows = _drawn(measurement, wanted, draw)
        labels = None if wanted is None else measurement.train_labels[rows]
        draws.append(distribution_figures(measurement.train_features.take(rows), labels, real, every))
    figures = over_draws(draws)
    first = _drawn(measurement, wanted, 0)
    figures = {**_of_training_images(measurement, first, wanted), **figures}
    # a training image is its own copy, so the share of copies that a perfect sampler has is that of held-out images
    figures |= named(memorised_figure(some(real.reference.features, config), real.train))
    told = (
        "training images, as many and of the classes that samples are asked for, by %d draws; copies: held-out images"
    )
    if wanted is None:
        told = "training images at random, as many as samples, by %d draws; copies: held-out images"
    return KnownSet(name, label, told % config.real_draws, len(first), figures)


def _of_training_images(measurement: Measurement, rows: Tensor, wanted: Tensor | None) -> Figures:
    train, real = measurement.train, measurement.real
    labels = None if wanted is None else measurement.train_labels[rows]
    features = measurement.train_features.take(rows)
    images = train.medium.rows(train.take(rows))
    return set_figures(features, images, labels, real, measurement.config, measurement.perception)


def _of_noise(measurement: Measurement, extractors: Extractors) -> Figures:
    config, real = measurement.config, measurement.real
    keys = Draws.of_seeds(generation.seeds(config.num_samples, config.seed)).keys
    shape = measurement.protocol.row_shape
    noise = torch.cat([2 * Draws(part).uniform("noise", shape) - 1 for part in keys.split(config.batch_size)])
    features = Features.joined(
        [extractors.features(part, measurement.train.medium) for part in noise.split(config.batch_size)]
    )
    labels = torch.arange(len(noise)) % len(real.classes) if real.classes else None
    return set_figures(features, noise, labels, real, config, measurement.perception)


def reference(params: Params) -> Known:
    """Writes everything below reference/. Returns what known.json holds."""
    extractors = open_extractors(params, default_device())
    with worker_pool(params.cluster, ROOT, writes_files=True) as workers:
        described = {split: describe(workers, params, split, extractors) for split in SPLITS}
    for split, anew in described.items():
        manifest: Manifest = read_manifest(paths.REFERENCE / split)
        print(f"{paths.REFERENCE / split}: {manifest.count} images {'described' if anew else 'unchanged'}", flush=True)
    measurement = open_measurement(params, extractors)
    judged = measurement.test_features.judged
    accuracy = None if judged is None else JUDGE_ACCURACY.figure(label_agreement(judged, measurement.test_labels))
    bias = training_bias(
        measurement.train_features.vectors,
        measurement.train_labels,
        measurement.test_features.vectors,
        measurement.real.reference.labels,
        params.evaluate.real_draws,
        params.evaluate.seed,
    )
    known = Known(measurement.protocol, named(accuracy) | bias, known_sets(measurement, extractors))
    write_json(paths.KNOWN, {**known.as_json(), "definitions": definitions_as_json(known.collections)})
    return known


def main(argv: list[str]) -> None:
    cli.no_arguments(argv, "python -m pipelines.reference")
    for one in reference(load()).sets:
        print(f"{one.label}: {row(one.figures)}")


if __name__ == "__main__":
    cli.run(main)
