"""DCGAN: binary cross-entropy and the classic alternation (Goodfellow et al. 2014; Radford et al. 2016)."""

from __future__ import annotations

from torch import nn

from components.families.base import Tiny
from components.gan.base import GAN
from components.gan.config import ConvConfig
from components.gan.networks import convolutional


class Model(GAN):
    Config = ConvConfig  # whose defaults are those of Radford et al. 2016, section 4

    def networks(self) -> dict[str, nn.Module]:
        return convolutional(self)


TINY = Tiny({"latent_dim": 5, "width": 4})
