"""cGAN: both players know the class (Mirza and Osindero 2014; projection by Miyato and Koyama 2018)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from components.families.gan.base import GAN, critic_options, refuse_unless_doubled
from components.families.gan.config import ConvConfig
from components.nets.gan.critic import Critic
from components.nets.gan.dcgan import Flat, Generator, Trunk


class Config(ConvConfig):
    condition: Literal["concatenate", "project"] = "project"  # how the discriminator is told


class CGAN(GAN):
    Config = Config
    conditional = True

    def players(self) -> dict[str, nn.Module]:
        refuse_unless_doubled(self)
        (channels, size, _), config, classes = self.data.shape, self.config, self.num_classes
        seen = channels + (classes if config.condition == "concatenate" else 0)
        return {
            "generator": Generator(channels, size, config.latent_dim, config.width, classes),
            "discriminator": Critic(
                Trunk(seen, size, config.width, batch_norm=True),
                Flat,
                condition=config.condition,
                num_classes=classes,
                **critic_options(self),
            ),
        }
