"""cGAN: both players know the class (Mirza and Osindero 2014; projection by Miyato and Koyama 2018)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from components.families.base import Tiny
from components.gan.config import ConvConfig
from components.gan.convolutional import ConvolutionalGAN


class Config(ConvConfig):
    condition: Literal["concatenate", "project"] = "project"  # how the discriminator is told


class Model(ConvolutionalGAN):
    Config = Config
    conditional = True

    def players(self) -> dict[str, nn.Module]:
        return self.convolutional(condition=self.config.condition)


TINY = Tiny({"latent_dim": 5, "width": 4})
