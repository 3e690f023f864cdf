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
    """Of parts of a set of images and their reconstructions, (N, C, H, W) in [-1, 1] each, H and W at least 6: psnr in
    decibels, infinite of equal images, and ssim (Wang et al. 2004), both means over images, and reconstruction_fd, the
    Fréchet distance of features. `embed`: images -> (N, D). Memory holds one part."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    totals, sums = torch.zeros(2, dtype=torch.float64), None
    for images, others in pairs:
        psnr = peak_signal_noise_ratio(
            others, images, data_range=(-1.0, 1.0), dim=(1, 2, 3), reduction="elementwise_mean"
        )
        ssim = structural_similarity_index_measure(others, images, data_range=2.0)
        totals += len(images) * torch.tensor([float(psnr), float(ssim)], dtype=torch.float64)
        seen = [Sums.of(embed(part).cpu()) for part in (images, others)]
        sums = seen if sums is None else [whole.plus(part) for whole, part in zip(sums, seen, strict=True)]
    assert sums is not None, "no images"
    psnr, ssim = (totals / sums[0].count).tolist()
    distance = frechet_distance(*(part.moments() for part in reversed(sums)))
    return {"psnr": psnr, "ssim": ssim, "reconstruction_fd": distance}
