"""How near an autoencoder's images come to what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from components.metrics.frechet import Sums, frechet_distance


@torch.inference_mode()
def reconstruction_figures(
    pairs: Iterable[tuple[Tensor, Tensor]], embed: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Of parts of a set of rows and their reconstructions, (N, C, ...) in [-1, 1] each: psnr in decibels, infinite of
    equal rows, and, of images whose height and width are at least 6, ssim (Wang et al. 2004), both means over rows, and
    reconstruction_fd, the Fréchet distance of features. `embed`: rows -> (N, D). Memory holds one part."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    totals, sums = {}, None
    for rows, others in pairs:
        axes = tuple(range(1, rows.ndim))
        found = {
            "psnr": peak_signal_noise_ratio(
                others, rows, data_range=(-1.0, 1.0), dim=axes, reduction="elementwise_mean"
            )
        }
        if rows.ndim == 4:
            found["ssim"] = structural_similarity_index_measure(others, rows, data_range=2.0)
        totals = {name: totals.get(name, 0.0) + len(rows) * float(value) for name, value in found.items()}
        seen = [Sums.of(embed(part).cpu()) for part in (rows, others)]
        sums = seen if sums is None else [whole.plus(part) for whole, part in zip(sums, seen, strict=True)]
    assert sums is not None, "no rows"
    distance = frechet_distance(*(part.moments() for part in reversed(sums)))
    return {**{name: total / sums[0].count for name, total in totals.items()}, "reconstruction_fd": distance}
