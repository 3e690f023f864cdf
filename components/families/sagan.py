"""SAGAN: self-attention, spectral normalisation of both networks, hinge loss, two time scales (Zhang et al. 2019)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from components.families.base import Tiny
from components.gan.base import GAN
from components.gan.config import ResidualConfig
from components.gan.losses import LossName
from components.gan.networks import projection_residual
from components.training.optimizers import OptimizerConfig


class Config(ResidualConfig):
    loss: LossName = "hinge"
    spectral_norm: tuple[Literal["generator", "discriminator"], ...] = ("generator", "discriminator")
    # its optimizer (Zhang et al. 2019, section 4: the discriminator learns four times as fast)
    generator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=1e-4, betas=(0.0, 0.9))
    discriminator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=4e-4, betas=(0.0, 0.9))


class Model(GAN):
    Config = Config
    conditional = True

    def networks(self) -> dict[str, nn.Module]:
        return projection_residual(self)


TINY = Tiny({"latent_dim": 5, "width": 4})
