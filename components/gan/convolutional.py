"""The players of DCGAN, which WGAN, WGAN-GP and cGAN train otherwise."""

from __future__ import annotations

from torch import nn

from components.gan.base import GAN, critic_options, refuse_unless_doubled
from components.gan.config import ConvConfig
from components.nets.gan.critic import Condition, Critic
from components.nets.gan.dcgan import Flat, Generator, Trunk


class ConvolutionalGAN(GAN):
    Config = ConvConfig

    def convolutional(self, batch_norm: bool = True, condition: Condition = "none") -> dict[str, nn.Module]:
        """`batch_norm` and `condition` are the discriminator's; the generator is told the class if it is."""
        refuse_unless_doubled(self)
        (channels, size, _), config = self.data.shape, self.config
        classes = 0 if condition == "none" else self.num_classes
        seen = channels + (classes if condition == "concatenate" else 0)
        trunk = Trunk(seen, size, config.width, batch_norm)
        return {
            "generator": Generator(channels, size, config.latent_dim, config.width, classes),
            "discriminator": Critic(trunk, Flat, condition=condition, num_classes=classes, **critic_options(self)),
        }
