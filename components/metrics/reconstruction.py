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
    summary=True,
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
    """psnr in decibels, ssim (Wang et al. 2004) and reconstruction_fd of a set of rows and their reconstructions.

    `pairs`: parts of the two, (N, C, ...) in [-1, 1] each; memory holds one part. `embed`: rows -> features (N, D).
    Equal rows have no psnr, which would be infinite; ssim is of images alone, whose height and width are at least 6."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    totals, sums = {}, None
    for rows, others in pairs:
        axes = tuple(range(1, rows.ndim))
        psnr = peak_signal_noise_ratio(others, rows, data_range=(-1.0, 1.0), dim=axes, reduction="elementwise_mean")
        found = {PSNR: psnr}
        if rows.ndim == 4:
            found[SSIM] = structural_similarity_index_measure(others, rows, data_range=2.0)
        totals = {one: totals.get(one, 0.0) + len(rows) * float(value) for one, value in found.items()}
        parts = [Sums.of(embed(part).cpu()) for part in (rows, others)]
        sums = parts if sums is None else [whole.plus(part) for whole, part in zip(sums, parts, strict=True)]
    assert sums is not None, "no rows"
    means = (one.figure(total / sums[0].count) for one, total in totals.items())
    return named(*means, RECONSTRUCTION_FD.figure(frechet_distance(*(part.moments() for part in reversed(sums)))))
