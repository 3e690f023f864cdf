"""How near an autoencoder's images come to what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from components.metrics.figures import Definition, Figures, named
from components.metrics.frechet import Sums, frechet_distance

PSNR = Definition(
    name="psnr",
    label="peak signal-to-noise ratio",
    explanation="of reconstructions, by pixels; a mean over images",
    kind="score",
    better="higher",
    unit="dB",
)
SSIM = Definition(
    name="ssim",
    label="structural similarity",
    explanation="of reconstructions and their images, by local means, contrasts and correlations; a mean over images",
    kind="score",
    better="higher",
)
RECONSTRUCTION_FD = Definition(
    name="reconstruction_fd",
    label="Fréchet distance of the reconstructions",
    explanation="of reconstructions to their images, by features; rFID on Inception's",
    kind="distance",
    better="lower",
)


@torch.inference_mode()
def reconstruction_figures(pairs: Iterable[tuple[Tensor, Tensor]], embed: Callable[[Tensor], Tensor]) -> Figures:
    """psnr in decibels, ssim (Wang et al. 2004) and reconstruction_fd of a set of images and their reconstructions.

    `pairs`: parts of the two, (N, C, H, W) in [-1, 1] each, H and W at least 6; memory holds one part. `embed`: images
    -> features (N, D). Equal images have no psnr, which would be infinite."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    totals, sums = torch.zeros(2, dtype=torch.float64), None
    for images, others in pairs:
        psnr = peak_signal_noise_ratio(
            others, images, data_range=(-1.0, 1.0), dim=(1, 2, 3), reduction="elementwise_mean"
        )
        ssim = structural_similarity_index_measure(others, images, data_range=2.0)
        totals += len(images) * torch.tensor([float(psnr), float(ssim)], dtype=torch.float64)
        parts = [Sums.of(embed(part).cpu()) for part in (images, others)]
        sums = parts if sums is None else [whole.plus(part) for whole, part in zip(sums, parts, strict=True)]
    assert sums is not None, "no images"
    psnr, ssim = (totals / sums[0].count).tolist()
    distance = frechet_distance(*(part.moments() for part in reversed(sums)))
    return named(PSNR.figure(psnr), SSIM.figure(ssim), RECONSTRUCTION_FD.figure(distance))
