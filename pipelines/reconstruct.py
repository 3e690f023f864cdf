"""Measures how near an autoencoder's reconstructions of held-out images come to them:
`python -m pipelines.reconstruct autoencoders.vae` -> metrics/vae.json."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from components.data.dataset import Dataset, verify
from components.data.images import from_uint8
from components.devices import default_device
from components.errors import InputError
from components.families.vae import VAE
from components.metrics.reconstruction import reconstruction_figures
from pipelines.support import cli, paths
from pipelines.support.autoencoders import load_vae
from pipelines.support.measurement import open_extractors
from pipelines.support.metrics_files import AutoencoderMetrics
from pipelines.support.params import Params, load, name_in


def reconstructed(vae: VAE, dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images, each batch beside what the autoencoder makes of it."""
    device = next(vae.nets.parameters()).device
    for chunk in dataset.chunks(batch_size):
        images = from_uint8(chunk["image"]).to(device)
        yield images, vae.reconstruct(images)


def reconstruct(params: Params, name: str, device: str) -> AutoencoderMetrics:
    """Measures by the extractor of params.evaluate; writes the figures, whole or not at all."""
    vae, extractors = load_vae(paths.RUNS / name, device), open_extractors(params, device)
    facts = verify(paths.TEST_IMAGES)
    shape = facts.columns["image"].shape
    extractors.refuse_unless_fits(paths.TEST_IMAGES, shape)
    if shape != vae.data.shape:
        raise InputError(f"{paths.TEST_IMAGES}: images of shape {shape}; {paths.RUNS / name} takes {vae.data.shape}")
    pairs = reconstructed(vae, Dataset(paths.TEST_IMAGES), params.evaluate.batch_size)
    extractor = extractors.extractor
    figures = reconstruction_figures(pairs, lambda images: extractor.embed(images).vectors)
    metrics = AutoencoderMetrics(name, facts.count, extractor.name, extractor.weights_hash, figures)
    metrics.write()
    return metrics


def main(argv: list[str]) -> None:
    key = cli.one_argument(argv, "python -m pipelines.reconstruct autoencoders.NAME")
    params = load()
    metrics = reconstruct(params, name_in(params, "autoencoders", key), default_device())
    print(f"{key}: {'  '.join(f'{name} {figure.value:.4g}' for name, figure in metrics.figures.items())}")


if __name__ == "__main__":
    cli.run(main)
