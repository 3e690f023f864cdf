"""cGAN: both networks take the class (Mirza and Osindero 2014; projection by Miyato and Koyama 2018). Of data without
classes it is the same without them."""

from __future__ import annotations

from typing import Literal

from torch import nn

from components.families.base import Tiny
from components.gan.base import GAN
from components.gan.config import ConvConfig
from components.gan.networks import convolutional


class Config(ConvConfig):
    condition: Literal["concatenate", "project"] = "project"  # how the discriminator takes it


class Model(GAN):
    Config = Config
    conditional = True
    labels_optional = True

    def networks(self) -> dict[str, nn.Module]:
        return convolutional(self, condition=self.config.condition)


TINY = Tiny({"latent_dim": 5, "width": 4})
