"""Encodes the training images: `python -m pipelines.encode latents` -> data/latents, with the autoencoder that made
them, and with the text encoder that embedded the captions where params.yaml names one."""

from __future__ import annotations

import shutil
from pathlib import Path

import safetensors.torch

from components.artifacts import run_folder
from components.data.dataset import Manifest, read_manifest, verify, write_manifest
from components.errors import ConfigError, DataError
from components.families.base import AutoencoderInfo
from components.files import whole_folder, write_json
from components.interchange import text_encoders
from components.nets.text_encoders import EncoderLayout, FrozenText
from infra.ray_cluster import encoding
from infra.ray_cluster.ray_session import session
from infra.storage.buckets import check_storage
from pipelines.support import cli, inputs, paths, remote
from pipelines.support.inputs import AUTOENCODER
from pipelines.support.params import Params, TextConfig, load
from pipelines.support.paths import ROOT


def encode(params: Params, name: str, images: Path, target: Path) -> Manifest:
    """Writes the latent data set of a block of `encode`, whole or not at all."""
    options, autoencoder = params.encode[name], inputs.resolve(params, name)[AUTOENCODER].path
    facts = verify(images)
    check_storage(params.cluster.storage(ROOT))
    run = run_folder.load(autoencoder)
    # a sampler's run holds the autoencoder that it was trained on
    info = run.config.data.autoencoder or AutoencoderInfo(
        family=run.config.family, config=run.config.config, data=run.config.data
    )
    text = None if options.text is None else open_text(options.text, facts, images)
    with whole_folder(target) as folder, session(params.cluster, ROOT):
        cluster = params.cluster
        layout = None if text is None else write_text(folder, text)
        shards, statistics = encoding.encode(
            autoencoder, images, folder, options.batch_size, cluster, cluster.storage(ROOT), options.flips, layout
        )
        write_json(folder / paths.AUTOENCODER_INFO, info.model_dump(mode="json"))
        shutil.copy(autoencoder / "autoencoder.safetensors", folder)
        write_manifest(
            folder,
            shards,
            medium=facts.medium,
            value_range=facts.value_range,
            classes=facts.classes,
            statistics=statistics,
            source={"images": facts.source.get("source", "images"), "autoencoder": run.config.provenance.job},
        )
    return read_manifest(target)


def open_text(config: TextConfig, facts: Manifest, images: Path) -> FrozenText:
    """Raises InputError of images without captions, and of an encoder that cannot be had."""
    if "caption" not in facts.columns:
        raise DataError(f"{images}: no captions; encode.text needs some to embed")
    return text_encoders.read(config.encoder, config.length, "encode.text.encoder")


def write_text(folder: Path, text: FrozenText) -> EncoderLayout:
    """Puts a text encoder into a latent data set, for trainings to carry into their run folders."""
    (layout,) = text.layouts
    write_json(folder / paths.TEXT_INFO, layout.model_dump(mode="json"))
    weights = {name: value.contiguous() for name, value in text.state_dict().items()}
    safetensors.torch.save_file(weights, folder / encoding.TEXT_WEIGHTS)
    return layout


def name_asked(params: Params, argv: list[str]) -> str:
    """The latent data set that a command line names, or the only one. Raises ConfigError listing those there are."""
    if argv not in [[name] for name in params.encode] and (argv or len(params.encode) != 1):
        known = ", ".join(params.encode) or "none"
        raise ConfigError(
            f"expected the name of a block of encode in params.yaml, one of {known}; found {' '.join(argv) or 'none'}"
        )
    return argv[0] if argv else next(iter(params.encode))


def main(argv: list[str]) -> None:
    params = load()
    name = name_asked(params, argv)
    autoencoder, text, target = params.inputs_of(name)[AUTOENCODER], params.encode[name].text, paths.DATA / name
    if remote.is_away(params.cluster):
        named = [] if text is None else [Path(text.encoder)]
        read = [paths.TRAIN_IMAGES, autoencoder, *(path for path in named if path.is_dir())]
        remote.run(params, "pipelines.encode", [name], read, [target])
        return
    manifest = encode(params, name, paths.TRAIN_IMAGES, target)
    shape = "x".join(map(str, manifest.columns["mean"].shape))
    print(f"{target}: {manifest.count} posteriors {shape} by {autoencoder}")
    for statistic, values in manifest.statistics.items():
        print(f"  {statistic}: {', '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    cli.run(main)
