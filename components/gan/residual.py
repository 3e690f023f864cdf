"""The players of SAGAN, which BigGAN enlarges."""

from __future__ import annotations

import functools

from torch import nn

from components.gan.base import GAN, critic_options, refuse_unless_doubled
from components.gan.config import ConvConfig
from components.nets.gan.critic import Critic
from components.nets.gan.residual import Generator, Pooled, Trunk


class ResidualConfig(ConvConfig):
    attention_at: int | None = 8  # the side of the maps that attend to themselves


class ResidualGAN(GAN):
    Config = ResidualConfig

    def players(self) -> dict[str, nn.Module]:
        refuse_unless_doubled(self)
        (channels, size, _), config = self.data.shape, self.config
        trunk = Trunk(channels, size, config.width, config.attention_at)
        read = functools.partial(Pooled, dim=trunk.channels)
        options = {"condition": "project", "num_classes": self.num_classes, **critic_options(self)}
        return {"generator": self.residual_generator(), "discriminator": Critic(trunk, read, **options)}

    def residual_generator(self, **options: int | bool) -> nn.Module:
        """`options` as those of nets.gan.residual.Generator; the class is told where the variant is conditional."""
        (channels, size, _), config = self.data.shape, self.config
        classes = self.num_classes if self.conditional else 0
        sizes = (channels, size, config.latent_dim, config.width, classes)
        return Generator(*sizes, attention_at=config.attention_at, **options)
