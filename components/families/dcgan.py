"""DCGAN: binary cross-entropy and the classic alternation (Goodfellow et al. 2014; Radford et al. 2016)."""

from __future__ import annotations

from torch import nn

from components.families.gan.base import GAN, critic_options, refuse_unless_doubled
from components.families.gan.config import ConvConfig
from components.nets.gan.critic import Critic
from components.nets.gan.dcgan import Flat, Generator, Trunk


class DCGAN(GAN):
    Config = ConvConfig
    batch_norm = True  # of the discriminator

    def players(self) -> dict[str, nn.Module]:
        refuse_unless_doubled(self)
        (channels, size, _), config = self.data.shape, self.config
        return {
            "generator": Generator(channels, size, config.latent_dim, config.width),
            "discriminator": Critic(
                Trunk(channels, size, config.width, self.batch_norm), Flat, **critic_options(self)
            ),
        }
