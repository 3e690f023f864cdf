"""DCGAN: binary cross-entropy and the classic alternation (Goodfellow et al. 2014; Radford et al. 2016)."""

from __future__ import annotations

from torch import nn

from components.families.base import Tiny
from components.gan.config import ConvConfig
from components.gan.convolutional import ConvolutionalGAN


class Model(ConvolutionalGAN):
    Config = ConvConfig  # whose defaults are those of Radford et al. 2016, section 4

    def players(self) -> dict[str, nn.Module]:
        return self.convolutional()


TINY = Tiny({"latent_dim": 5, "width": 4})
