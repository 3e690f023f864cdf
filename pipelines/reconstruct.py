"""Measures how near an autoencoder's reconstructions of held-out images come to them:
`python -m pipelines.reconstruct autoencoders.vae` -> metrics/vae.json."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from components.artifacts import run_folder
from components.data.dataset import Dataset, verify
from components.errors import InputError
from components.evaluation.tasks import default_device
from components.families.base import Autoencoder
from components.files import write_json
from components.metrics.reconstruction import reconstruction_figures
from pipelines.support import cli, paths
from pipelines.support.measurement import open_extractors
from pipelines.support.params import Params, load, name_in


def load_autoencoder(folder: Path, device: str = "cpu") -> Autoencoder:
    """Raises InputError of a run folder that holds no autoencoder."""
    run = run_folder.load(folder, device)
    if not isinstance(run.family, Autoencoder):
        raise InputError(
            f"{folder}: expected a trained autoencoder, as params.yaml.autoencoders says, found a {run.config.family}"
        )
    return run.family


def reconstructed(autoencoder: Autoencoder, dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images, each batch beside what the autoencoder makes of it."""
    device = next(autoencoder.nets.parameters()).device
    for chunk in dataset.chunks(batch_size):
        rows = dataset.medium.rows(chunk).to(device)
        yield rows, autoencoder.reconstruct(rows)


def reconstruct(params: Params, name: str, device: str) -> dict:
    """Writes the figures, by the extractor of params.evaluate, whole or not at all. What is not finite is None."""
    autoencoder, extractors = load_autoencoder(paths.RUNS / name, device), open_extractors(params, device)
    facts = verify(paths.TEST_IMAGES)
    dataset = Dataset(paths.TEST_IMAGES)
    extractors.refuse_unless_fits(paths.TEST_IMAGES, dataset.row_shape)
    if dataset.row_shape != autoencoder.data.shape:
        raise InputError(
            f"{paths.TEST_IMAGES}: {dataset.medium.plural} of shape {dataset.row_shape}; {paths.RUNS / name} takes "
            f"{autoencoder.data.shape}"
        )
    pairs = reconstructed(autoencoder, dataset, params.evaluate.batch_size)
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
    told = {name: result[name] for name in ("psnr", "ssim", "reconstruction_fd") if result.get(name) is not None}
    print(f"{key}: {'  '.join(f'{name} {value:.4g}' for name, value in told.items())}")


if __name__ == "__main__":
    cli.run(main)
