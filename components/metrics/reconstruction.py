"""How near an autoencoder's images come to what it was given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.metrics.frechet import Moments, frechet_distance


@torch.inference_mode()
def reconstruction_figures(images: Tensor, others: Tensor, judge: nn.Module, chunk: int = 256) -> dict[str, float]:
    """Of `images` and their reconstructions, (N, C, H, W) in [-1, 1]: psnr in decibels, ssim (Wang et al. 2004), both
    means over images, and reconstruction_fd, the Fréchet distance of the judge's features."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    def features(of: Tensor) -> Tensor:
        return torch.cat([judge.features(part) for part in of.split(chunk)]).double().cpu()

    psnr = peak_signal_noise_ratio(others, images, data_range=(-1.0, 1.0), dim=(1, 2, 3), reduction="elementwise_mean")
    ssim = structural_similarity_index_measure(others, images, data_range=2.0)
    distance = frechet_distance(Moments.of(features(others)), Moments.of(features(images)))
    return {"psnr": float(psnr), "ssim": float(ssim), "reconstruction_fd": distance}
