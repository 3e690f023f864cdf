"""Measures how near an autoencoder's reconstructions of held-out images come to them:
`python -m pipelines.reconstruct autoencoders.vae` -> metrics/vae.json."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from components.data.dataset import Dataset, verify
from components.devices import default_device
from components.errors import InputError
from components.families.base import Autoencoder
from components.metrics.reconstruction import reconstruction_figures
from pipelines.support import cli, paths
from pipelines.support.autoencoders import load_autoencoder
from pipelines.support.measurement import open_extractors
from pipelines.support.metrics_files import AutoencoderMetrics
from pipelines.support.params import Params, load, name_in


def reconstructed(autoencoder: Autoencoder, dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images, each batch beside what the autoencoder makes of it."""
    device = next(autoencoder.nets.parameters()).device
    for chunk in dataset.chunks(batch_size):
        rows = dataset.medium.rows(chunk).to(device)
        yield rows, autoencoder.reconstruct(rows)


def reconstruct(params: Params, name: str, device: str) -> AutoencoderMetrics:
    """Measures by the extractor of params.evaluate; writes the figures, whole or not at all."""
    autoencoder, extractors = load_autoencoder(paths.RUNS / name, device), open_extractors(params, device)
    facts = verify(paths.TEST_IMAGES)
    dataset = Dataset(paths.TEST_IMAGES)
    extractors.refuse_unless_fits(paths.TEST_IMAGES, dataset.medium, dataset.row_shape)
    if dataset.row_shape != autoencoder.data.shape:
        raise InputError(
            f"{paths.TEST_IMAGES}: {dataset.medium.plural} of shape {dataset.row_shape}; {paths.RUNS / name} takes "
            f"{autoencoder.data.shape}"
        )
    pairs = reconstructed(autoencoder, dataset, params.evaluate.batch_size)
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
