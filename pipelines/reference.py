"""Describes the real images, once for all samplers: `python -m pipelines.reference` -> reference/.

    reference/train, reference/test   a data set each: what extractor and judge see of every image; moments.safetensors
    reference/known.json              the protocol, and figures of sets that are known: real images, copies, noise

Features stay as they are while data, extractor and judge are the same; only what changed is computed again.
"""

from __future__ import annotations

import functools
from pathlib import Path

import safetensors.torch
import torch

from components.data.dataset import MANIFEST, Dataset, Manifest, read_manifest, verify, write_manifest
from components.data.randomness import Draws
from components.errors import DataError
from components.evaluation import generation
from components.evaluation.extractor import label_agreement
from components.evaluation.measuring import copied_share, figures
from components.evaluation.tasks import DescribeTask, Extractors, Seen, default_device
from components.files import sha256, whole_folder, write_json
from components.metrics.frechet import Sums
from infra.ray_cluster.worker_pool import WorkerPool, worker_pool
from pipelines.support import cli, measurement, paths
from pipelines.support.params import Params, load
from pipelines.support.paths import ROOT

SPLITS = {"train": paths.TRAIN_IMAGES, "test": paths.TEST_IMAGES}


def origin(images: Path, extractors: Extractors) -> dict[str, str | int | float]:
    """What a description depends on. Two with equal origins are equal."""
    return {
        "data": sha256(images / MANIFEST),
        "extractor": extractors.extractor.name,
        "extractor_hash": extractors.extractor.weights_hash,
        "judge_hash": "" if extractors.judge is None else extractors.judge.weights_hash,
        "resize": extractors.extractor.resize,
    }


def describe(workers: WorkerPool, params: Params, split: str, extractors: Extractors) -> bool:
    """Writes reference/<split> unless it is there already; tells whether it had to. Raises InputError of images that
    are damaged or of another shape than the judge's."""
    images, target = SPLITS[split], paths.REFERENCE / split
    facts = verify(images)
    extractors.refuse_unless_fits(images, Dataset(images).row_shape)
    wanted = origin(images, extractors)
    if is_whole(target, wanted):
        return False
    config = params.evaluate
    with whole_folder(target) as folder:
        order = DescribeTask(
            images.resolve(), folder.resolve(), config.extractor, measurement.judge_folder(params), config.batch_size
        )
        make = order.worker if workers.spreads else functools.partial(order.worker, extractors)
        done = list(workers.map(make, range(len(facts.shards))))
        _write_moments(folder / measurement.MOMENTS, functools.reduce(Sums.plus, (sums for _, sums in done)))
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
    try:
        return (
            read_manifest(folder).source == wanted and bool(verify(folder)) and (folder / measurement.MOMENTS).is_file()
        )
    except DataError:
        return False


def _write_moments(path: Path, sums: Sums) -> None:
    if sums.count < 2:
        raise DataError(f"{sums.count} image; figures need two or more")
    moments = sums.moments()
    tensors = {"count": torch.tensor(moments.count), "mean": moments.mean, "covariance": moments.covariance}
    safetensors.torch.save_file(tensors, path)


def known(measured: measurement.Measurement, extractors: Extractors) -> dict[str, dict]:
    """Figures of sets whose quality is known. `floor`: real training images, what a perfect sampler would get; its
    share of copies is that of the held-out images. `copy`: the training set itself, suspicious for its copies alone.
    `noise`: uniform pixels, what no sampler should get."""
    config, train = measured.config, measured.train
    count = min(config.num_samples, len(train))
    found = {}
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))[:count]
    for name, chosen in {"floor": rows, "copy": torch.arange(count)}.items():
        taken = train.take(chosen)
        seen = Seen(*(None if part is None else part[chosen] for part in measured.train_seen))
        labels = taken["label"] if measured.real.classes else None
        found[name] = figures(seen, train.medium.rows(taken), labels, measured.real, config, measured.perception)
    copies = copied_share(measured.real.reference.features, measured.real.train, config)
    found["floor"]["memorised"] = copies
    keys = Draws.of_seeds(generation.seeds(config.num_samples, config.seed)).keys
    shape = measured.protocol.image_shape
    noise = torch.cat([2 * Draws(part).uniform("noise", shape) - 1 for part in keys.split(config.batch_size)])
    seen = Seen.joined([extractors.look(part) for part in noise.split(config.batch_size)])
    labels = torch.arange(len(noise)) % len(measured.real.classes) if measured.real.classes else None
    found["noise"] = figures(seen, noise, labels, measured.real, config, measured.perception)
    sizes = {"floor": count, "copy": count, "noise": len(noise)}
    return {name: {"num_samples": sizes[name], **row} for name, row in found.items()}


def reference(params: Params) -> dict:
    """Writes everything below reference/. Returns what known.json holds."""
    extractors = measurement.open_extractors(params, default_device())
    with worker_pool(params.cluster, ROOT, writes_files=True) as workers:
        described = {split: describe(workers, params, split, extractors) for split in SPLITS}
    for split, anew in described.items():
        manifest: Manifest = read_manifest(paths.REFERENCE / split)
        print(f"{paths.REFERENCE / split}: {manifest.count} images {'described' if anew else 'unchanged'}", flush=True)
    measured = measurement.open_measurement(params, extractors)
    content = {
        "protocol": measured.protocol.model_dump(mode="json"),
        "judge_accuracy": None
        if measured.test_seen.judged is None
        else label_agreement(measured.test_seen.judged, measured.test_labels),
        **known(measured, extractors),
    }
    write_json(paths.KNOWN, content)
    return content


def main(argv: list[str]) -> None:
    cli.no_arguments(argv, "python -m pipelines.reference")
    content = reference(load())
    for name in ("floor", "copy", "noise"):
        print(f"{name}: {measurement.row(content[name])}")


if __name__ == "__main__":
    cli.run(main)
