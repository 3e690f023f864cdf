"""WGAN: the Wasserstein loss under weight clipping (Arjovsky et al. 2017)."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from components.families.base import Tiny
from components.gan.base import GAN
from components.gan.config import ConvConfig
from components.gan.losses import LossName
from components.gan.networks import convolutional
from components.training.optimizers import OptimizerConfig

RMSPROP = OptimizerConfig(name="rmsprop", learning_rate=5e-5)  # Arjovsky et al. 2017, Algorithm 1


class Config(ConvConfig):
    loss: LossName = "wasserstein"
    clip_weights: float | None = Field(0.01, gt=0)
    num_critic_steps: int = Field(5, ge=1)
    generator: OptimizerConfig = RMSPROP
    discriminator: OptimizerConfig = RMSPROP


class Model(GAN):
    Config = Config

    def networks(self) -> dict[str, nn.Module]:
        return convolutional(self)


TINY = Tiny({"latent_dim": 5, "width": 4, "num_critic_steps": 2})
