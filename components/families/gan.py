"""What all GAN baselines share: a generator that samples in one call, fakes and reals for the players' losses."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data import Batch
from components.errors import SamplerError
from components.families.base import DataInfo, Sampler, refuse_unless_square
from components.images import from_uint8
from components.nets.dcgan import Discriminator, Generator, doublings
from components.randomness import Draws
from components.sampling import Call, Request, Trajectory


class Settings(Strict):
    """A generator answers in one call; there is nothing to set."""


class ConvConfig(Strict):
    """The size of the convolutional players."""

    latent_dim: int = Field(100, ge=1)
    width: int = Field(64, ge=1)  # channels beside the image; each resolution below has twice as many


class GAN(Sampler):
    """Base of the GAN families. Subclasses `adopt` two nets and set `phases`."""

    Settings = Settings
    kept = ("generator",)

    def __init__(self, config: ConvConfig, data: DataInfo):
        self.config, self.data = config, data
        name = type(self).__name__.lower()
        refuse_unless_square(data.shape, 1, name)
        try:
            doublings(data.shape[1])
        except ValueError as error:
            raise SamplerError(f"{name}: {error}") from None

    def reals(self, batch: Batch) -> Tensor:
        return from_uint8(batch.columns["image"])

    def latents(self, draws: Draws, name: str) -> Tensor:
        """z (B, latent_dim), standard normal."""
        return draws.normal(name, (self.config.latent_dim,))

    @torch.no_grad()
    def fakes(self, batch: Batch) -> Tensor:
        """The generator's images for a discriminator's loss, without a graph."""
        return self.nets["generator"](self.latents(batch.draws, "fakes"))

    def trajectory(self, request: Request) -> Trajectory:
        return (yield Call("generator", {"z": self.latents(Draws.of_seeds(request.seeds), "sample")}))

    def adopt_convolutional(self, batch_norm: bool) -> None:
        """Both players of Radford et al. 2016; `batch_norm` is the discriminator's."""
        (channels, size, _), config = self.data.shape, self.config
        self.adopt(
            Generator(channels, size, config.latent_dim, config.width),
            Discriminator(channels, size, config.width, batch_norm),
        )

    def adopt(self, generator: nn.Module, discriminator: nn.Module) -> None:
        """Registers the two players' networks."""
        self.nets = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
        self.calls = {"generator": generator}
