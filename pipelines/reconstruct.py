"""Measures how near an autoencoder's reconstructions of held-out images come to them:
`python -m pipelines.reconstruct autoencoders.vae` -> metrics/vae.json."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from components.artifacts import run_folder
from components.data.dataset import Dataset, verify
from components.data.images import from_uint8
from components.errors import InputError
from components.evaluation.tasks import default_device
from components.families.vae import Model as VAE
from components.files import write_json
from components.metrics.reconstruction import reconstruction_figures
from pipelines.support import cli, paths
from pipelines.support.measurement import open_extractors
from pipelines.support.params import Params, load, name_in


def load_vae(folder: Path, device: str = "cpu") -> VAE:
    """Raises InputError of a run folder that holds no autoencoder."""
    vae = run_folder.load(folder, device).family
    if not isinstance(vae, VAE):
        raise InputError(f"{folder}: expected a trained vae, as params.yaml.autoencoders says")
    return vae


def reconstructed(vae: VAE, dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images, each batch beside what the autoencoder makes of it."""
    device = next(vae.nets.parameters()).device
    for chunk in dataset.chunks(batch_size):
        images = from_uint8(chunk["image"]).to(device)
        yield images, vae.reconstruct(images)


def reconstruct(params: Params, name: str, device: str) -> dict:
    """Writes the figures, by the extractor of params.evaluate, whole or not at all. What is not finite is None."""
    vae, extractors = load_vae(paths.RUNS / name, device), open_extractors(params, device)
    facts = verify(paths.TEST_IMAGES)
    shape = facts.columns["image"].shape
    extractors.refuse_unless_fits(paths.TEST_IMAGES, shape)
    if shape != vae.data.shape:
        raise InputError(f"{paths.TEST_IMAGES}: images of shape {shape}; {paths.RUNS / name} takes {vae.data.shape}")
    pairs = reconstructed(vae, Dataset(paths.TEST_IMAGES), params.evaluate.batch_size)
    figures = reconstruction_figures(pairs, lambda images: extractors.extractor.embed(images).vectors)
    result = {
        "autoencoder": name,
        "num_images": facts.count,
        "extractor": extractors.extractor.name,
        "extractor_hash": extractors.extractor.weights_hash,
        **{figure: value if math.isfinite(value) else None for figure, value in figures.items()},
    }
    write_json(paths.METRICS / f"{name}.json", result)
    return result


def main(argv: list[str]) -> None:
    key = cli.one_argument(argv, "python -m pipelines.reconstruct autoencoders.NAME")
    params = load()
    result = reconstruct(params, name_in(params, "autoencoders", key), default_device())
    told = {name: result[name] for name in ("psnr", "ssim", "reconstruction_fd") if result[name] is not None}
    print(f"{key}: {'  '.join(f'{name} {value:.4g}' for name, value in told.items())}")


if __name__ == "__main__":
    cli.run(main)
