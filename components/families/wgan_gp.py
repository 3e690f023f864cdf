"""WGAN-GP: the Wasserstein loss with a gradient penalty (Gulrajani et al. 2017)."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from components.families.base import Tiny
from components.gan.base import GAN
from components.gan.config import ConvConfig
from components.gan.losses import LossName
from components.gan.networks import convolutional
from components.training.optimizers import OptimizerConfig

ADAM = OptimizerConfig(name="adam", learning_rate=1e-4, betas=(0.0, 0.9))  # Gulrajani et al. 2017, Algorithm 1


class Config(ConvConfig):
    loss: LossName = "wasserstein"
    gradient_penalty: float = Field(10.0, ge=0)
    num_critic_steps: int = Field(5, ge=1)
    generator: OptimizerConfig = ADAM
    discriminator: OptimizerConfig = ADAM


class Model(GAN):
    Config = Config

    def networks(self) -> dict[str, nn.Module]:
        return convolutional(self, batch_norm=False)  # the penalty is defined for each row alone


TINY = Tiny({"latent_dim": 5, "width": 4, "num_critic_steps": 2})
