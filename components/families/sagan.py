"""SAGAN: self-attention, spectral normalisation in both players, the hinge loss, two time scales (Zhang et al. 2019)."""

from __future__ import annotations

import functools
from typing import Literal

from torch import nn

from components.families.gan.base import GAN, critic_options, refuse_unless_doubled
from components.families.gan.config import ConvConfig
from components.families.gan.losses import LossName
from components.nets.gan.critic import Critic
from components.nets.gan.residual import Generator, Pooled, Trunk
from components.optimizers import OptimizerConfig


class Config(ConvConfig):
    loss: LossName = "hinge"
    spectral_norm: tuple[Literal["generator", "discriminator"], ...] = ("generator", "discriminator")
    # Zhang et al. 2019, section 4: the discriminator learns four times as fast
    generator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=1e-4, betas=(0.0, 0.9))
    discriminator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=4e-4, betas=(0.0, 0.9))
    attention_at: int | None = 8  # the side of the maps that attend to themselves


class SAGAN(GAN):
    Config = Config
    conditional = True

    def players(self) -> dict[str, nn.Module]:
        refuse_unless_doubled(self)
        (channels, size, _), config = self.data.shape, self.config
        trunk = Trunk(channels, size, config.width, config.attention_at)
        critic = Critic(
            trunk,
            functools.partial(Pooled, dim=trunk.channels),
            condition="project",
            num_classes=self.num_classes,
            **critic_options(self),
        )
        return {"generator": self.made_by(channels, size), "discriminator": critic}

    def made_by(self, channels: int, size: int) -> nn.Module:
        """The generator."""
        config = self.config
        return Generator(
            channels, size, config.latent_dim, config.width, self.num_classes, attention_at=config.attention_at
        )
