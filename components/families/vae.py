"""The KL autoencoder whose latents diffusion works on (Kingma and Welling 2014; Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data import Batch
from components.families.base import DataInfo, Losses, Phase, Sampler, refuse_unless_square
from components.images import from_uint8
from components.nets.autoencoder import AutoencoderKL
from components.optimizers import OptimizerConfig
from components.randomness import Draws
from components.sampling import Call, Request, Trajectory


class Config(Strict):
    latent_channels: int = Field(4, ge=1)
    widths: tuple[int, ...] = Field((32, 64), min_length=1)  # channels by resolution; each but the last halves the side
    layers: int = Field(1, ge=1)  # residual blocks a resolution
    reconstruction: Literal["mse", "l1", "bce"] = "mse"
    kl_weight: float = Field(1e-2, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=50)


class Settings(Strict):
    """A plain autoencoder has nothing to set."""


class VAE(Sampler):
    Config = Config
    Settings = Settings
    kept = ("autoencoder",)

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        self.factor = 2 ** (len(config.widths) - 1)
        refuse_unless_square(data.shape, self.factor, "vae")
        net = AutoencoderKL(data.shape[0], config.latent_channels, config.widths, config.layers)
        self.nets = nn.ModuleDict({"autoencoder": net})
        self.calls = {"decoder": net.decode}
        self.phases = (Phase("autoencode", "autoencoder", self.loss, config.optimizer),)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        _, height, width = self.data.shape
        return self.config.latent_channels, height // self.factor, width // self.factor

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        images = from_uint8(batch.columns["image"])
        decoded, mean, std = net(images, batch.draws.normal("posterior", self.latent_shape))
        reconstruction = RECONSTRUCTION[self.config.reconstruction](decoded, images).flatten(1).sum(1).mean()
        kl = gaussian_kl(mean, std)
        return {"loss": reconstruction + self.config.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}

    def decode(self, latents: Tensor) -> Trajectory:
        """Latents as the encoder gives them -> images in [-1, 1]."""
        decoded = yield Call("decoder", {"latents": latents})
        return self.bounded(decoded)

    def bounded(self, decoded: Tensor) -> Tensor:
        """The decoder's output as images in [-1, 1]; under `bce` it is a logit."""
        return decoded.tanh() if self.config.reconstruction == "bce" else decoded.clamp(-1, 1)

    def trajectory(self, request: Request) -> Trajectory:
        """Decodes draws from the prior, the autoencoder as a generator of its own."""
        return (yield from self.decode(Draws.of_seeds(request.seeds).normal("latent", self.latent_shape)))

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images through the posterior mean and back, (B, C, H, W) in [-1, 1]."""
        net = self.nets["autoencoder"].eval()
        return self.bounded(net.decode(net.encode(images)[0]))

    def preview(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Rows of ten images, each above its reconstruction."""
        images = from_uint8(columns["image"][:20]).to(next(self.nets.parameters()).device)
        pairs = zip(images.split(10), self.reconstruct(images).split(10), strict=True)
        return torch.cat([row for pair in pairs for row in pair])


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) summed over a latent, averaged over rows (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).flatten(1).sum(1).mean()


def _bce(logits: Tensor, images: Tensor) -> Tensor:
    # tanh(z / 2) = 2 sigmoid(z) - 1, so z = 2 * logits makes tanh(logits) the mean image
    return F.binary_cross_entropy_with_logits(2 * logits, (images + 1) / 2, reduction="none")


RECONSTRUCTION = {
    "mse": lambda decoded, images: (decoded - images) ** 2,
    "l1": lambda decoded, images: (decoded - images).abs(),
    "bce": _bce,
}
