"""Encodes the training images: `python -m pipelines.encode` -> data/latents, with the autoencoder that made them."""

from __future__ import annotations

import shutil
from pathlib import Path

from components import run_folder
from components.data import Manifest, read_manifest, verify, write_manifest
from components.families.base import AutoencoderInfo
from components.files import whole_folder, write_json
from infra import ray_data
from infra.ray_session import session
from pipelines import cli, paths
from pipelines.params import Params, load
from pipelines.train import ROOT


def encode(params: Params, autoencoder: Path, images: Path, target: Path) -> Manifest:
    """Writes the latent data set, whole or not at all."""
    facts = verify(images)
    run = run_folder.load(autoencoder)
    info = AutoencoderInfo(config=run.config.config, data=run.config.data)
    with whole_folder(target) as folder, session(params.cluster, ROOT):
        num_workers = params.cluster.max_workers
        options = params.encode.batch_size, num_workers, params.encode.flips
        shards, statistics = ray_data.encode(autoencoder, images, folder, *options)
        write_json(folder / paths.AUTOENCODER_INFO, info.model_dump(mode="json"))
        shutil.copy(autoencoder / "autoencoder.safetensors", folder)
        write_manifest(
            folder,
            shards,
            value_range=facts.value_range,
            classes=facts.classes,
            statistics=statistics,
            source={"images": facts.source.get("source", "images"), "autoencoder": run.config.provenance.job},
        )
    return read_manifest(target)


def main(argv: list[str]) -> None:
    params = load()
    autoencoder = paths.RUNS / next(iter(params.autoencoders))
    manifest = encode(params, autoencoder, paths.TRAIN_IMAGES, paths.LATENTS)
    shape = "x".join(map(str, manifest.columns["mean"].shape))
    print(f"{paths.LATENTS}: {manifest.count} posteriors {shape} by {autoencoder}")
    for name, values in manifest.statistics.items():
        print(f"  {name}: {', '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    cli.run(main)
