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

from components.data import MANIFEST, Manifest, read_manifest, verify, write_manifest
from components.errors import DataError
from components.files import sha256, whole_folder, write_json
from components.images import from_uint8
from components.metrics import generation
from components.metrics.extractor import label_agreement
from components.metrics.frechet import Sums
from components.metrics.measuring import copied_share, figures
from components.metrics.work import Description, Eyes, Seen, default_device
from components.randomness import Draws
from infra.ray_map import Crew, crew
from pipelines import bench, cli, paths
from pipelines.params import Params, load
from pipelines.train import ROOT

SPLITS = {"train": paths.TRAIN_IMAGES, "test": paths.TEST_IMAGES}


def origin(images: Path, eyes: Eyes) -> dict[str, str | int | float]:
    """What a description depends on. Two with equal origins are equal."""
    return {
        "data": sha256(images / MANIFEST),
        "extractor": eyes.extractor.name,
        "extractor_hash": eyes.extractor.weights_hash,
        "judge_hash": "" if eyes.judge is None else eyes.judge.weights_hash,
        "resize": eyes.extractor.resize,
    }


def describe(workers: Crew, params: Params, split: str, eyes: Eyes) -> bool:
    """Writes reference/<split> unless it is there already; tells whether it had to. Raises InputError of images that
    are damaged or of another shape than the judge's."""
    images, target = SPLITS[split], paths.REFERENCE / split
    facts = verify(images)
    eyes.refuse_unless_fits(images, facts.columns["image"].shape)
    wanted = origin(images, eyes)
    if is_whole(target, wanted):
        return False
    config = params.evaluate
    with whole_folder(target) as folder:
        order = Description(
            images.resolve(), folder.resolve(), config.extractor, bench.judge_folder(params), config.batch_size
        )
        make = order.worker if workers.spreads else functools.partial(order.worker, eyes)
        done = list(workers.map(make, range(len(facts.shards))))
        _write_moments(folder / bench.MOMENTS, functools.reduce(Sums.plus, (sums for _, sums in done)))
        shards = [shard for shard, _ in done]
        write_manifest(folder, shards, value_range=facts.value_range, classes=facts.classes, source=wanted)
    return True


def is_whole(folder: Path, wanted: dict) -> bool:
    try:
        return read_manifest(folder).source == wanted and bool(verify(folder)) and (folder / bench.MOMENTS).is_file()
    except DataError:
        return False


def _write_moments(path: Path, sums: Sums) -> None:
    if sums.count < 2:
        raise DataError(f"{sums.count} image; figures need two or more")
    moments = sums.moments()
    tensors = {"count": torch.tensor(moments.count), "mean": moments.mean, "covariance": moments.covariance}
    safetensors.torch.save_file(tensors, path)


def known(measured: bench.Bench, eyes: Eyes) -> dict[str, dict]:
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
        found[name] = figures(seen, from_uint8(taken["image"]), labels, measured.real, config, measured.perception)
    copies = copied_share(measured.real.reference.features, measured.real.train, config)
    found["floor"]["memorised"] = copies
    keys = Draws.of_seeds(generation.seeds(config.num_samples, config.seed)).keys
    shape = measured.protocol.image_shape
    noise = torch.cat([2 * Draws(part).uniform("noise", shape) - 1 for part in keys.split(config.batch_size)])
    seen = Seen.joined([eyes.look(part) for part in noise.split(config.batch_size)])
    labels = torch.arange(len(noise)) % len(measured.real.classes) if measured.real.classes else None
    found["noise"] = figures(seen, noise, labels, measured.real, config, measured.perception)
    sizes = {"floor": count, "copy": count, "noise": len(noise)}
    return {name: {"num_samples": sizes[name], **row} for name, row in found.items()}


def reference(params: Params) -> dict:
    """Writes everything below reference/. Returns what known.json holds."""
    eyes = bench.open_eyes(params, default_device())
    with crew(params.cluster, ROOT, writes_files=True) as workers:
        described = {split: describe(workers, params, split, eyes) for split in SPLITS}
    for split, anew in described.items():
        manifest: Manifest = read_manifest(paths.REFERENCE / split)
        print(f"{paths.REFERENCE / split}: {manifest.count} images {'described' if anew else 'unchanged'}", flush=True)
    measured = bench.open_bench(params, eyes)
    content = {
        "protocol": measured.protocol.model_dump(mode="json"),
        "judge_accuracy": None
        if measured.test_seen.judged is None
        else label_agreement(measured.test_seen.judged, measured.test_labels),
        **known(measured, eyes),
    }
    write_json(paths.KNOWN, content)
    return content


def main(argv: list[str]) -> None:
    cli.no_arguments(argv, "python -m pipelines.reference")
    content = reference(load())
    for name in ("floor", "copy", "noise"):
        print(f"{name}: {bench.row(content[name])}")


if __name__ == "__main__":
    cli.run(main)
