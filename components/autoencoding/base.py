"""What an autoencoder is to others: latents in the place of rows, and the way back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from components.config import Strict
from components.data.randomness import Draws
from components.families.base import Judge, Sampler
from components.metrics.reconstruction import reconstruction_figures
from components.sampling.requests import Request
from components.sampling.trajectories import Call, Trajectory


class Settings(Strict):
    """A plain autoencoder has nothing to set."""


class Autoencoder(Sampler):
    """Base of the autoencoders. `nets["autoencoder"]` has `encode`, rows (B, C, ...) in [-1, 1] -> mean and standard
    deviation of the posterior, (B, *latent_shape) each, and `decode`, latents -> rows, not yet bounded."""

    Settings = Settings
    kept = ("autoencoder",)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of a row's latent, channels first."""
        raise NotImplementedError

    def bounded(self, decoded: Tensor) -> Tensor:
        """The decoder's output as rows in [-1, 1]."""
        return decoded.clamp(-1, 1)

    def decode(self, latents: Tensor) -> Trajectory:
        """Latents as the encoder gives them -> rows in [-1, 1]."""
        decoded = yield Call("decoder", {"latents": latents})
        return self.bounded(decoded)

    def trajectory(self, request: Request) -> Trajectory:
        """Decodes draws from the prior, the autoencoder as a generator of its own."""
        return (yield from self.decode(Draws.of_seeds(request.seeds).normal("latent", self.latent_shape)))

    @torch.inference_mode()
    def reconstruct(self, rows: Tensor) -> Tensor:
        """Rows through the posterior mean and back, (B, C, ...) in [-1, 1]."""
        net = self.nets["autoencoder"].eval()
        return self.bounded(net.decode(net.encode(rows)[0]))

    def watch(self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor], judge: Judge) -> dict[str, float]:
        """psnr, ssim and reconstruction_fd of rows that were not trained on."""
        rows = self.medium.rows(held_out).to(next(self.nets.parameters()).device)
        pairs = ((part, self.reconstruct(part)) for part in rows.split(256))
        return reconstruction_figures(pairs, judge.nets["classifier"].features)

    def preview(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Lines of ten rows, each above its reconstruction."""
        rows = self.medium.rows(columns)[:20].to(next(self.nets.parameters()).device)
        pairs = zip(rows.split(10), self.reconstruct(rows).split(10), strict=True)
        return torch.cat([line for pair in pairs for line in pair])
