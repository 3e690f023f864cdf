"""R3GAN: a relativistic loss under R1 and R2, modern networks, no tricks (Huang et al. 2024)."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from components.families.base import Tiny
from components.gan.base import GAN
from components.gan.config import ConvConfig
from components.gan.losses import LossName
from components.gan.networks import critic_options, doubled_side
from components.nets.gan.critic import Critic
from components.nets.gan.r3gan import Generator, Head, Trunk
from components.training.optimizers import OptimizerConfig

ADAM = OptimizerConfig(name="adam", learning_rate=2e-4, betas=(0.0, 0.99))


class Config(ConvConfig):
    latent_dim: int = Field(64, ge=1)
    blocks: int = Field(2, ge=1)  # at each resolution
    expansion: int = Field(2, ge=1)
    group_size: int = Field(16, ge=1)  # channels that a grouped convolution connects
    embedding_dim: int = Field(32, ge=1)  # of the class
    loss: LossName = "relativistic"
    r1: float = Field(1.0, ge=0)
    r2: float = Field(1.0, ge=0)
    generator: OptimizerConfig = ADAM
    discriminator: OptimizerConfig = ADAM


class Model(GAN):
    Config = Config
    conditional = True
    labels_optional = True

    def networks(self) -> dict[str, nn.Module]:
        (channels, size), config, classes = doubled_side(self), self.config, self.num_classes
        sizes = {name: getattr(config, name) for name in ("width", "blocks", "expansion", "group_size")}
        return {
            "generator": Generator(channels, size, config.latent_dim, classes, config.embedding_dim, **sizes),
            "discriminator": Critic(
                Trunk(channels, size, **sizes), Head, condition="project", num_classes=classes, **critic_options(self)
            ),
        }


TINY = Tiny({"latent_dim": 5, "width": 4, "blocks": 1, "group_size": 2, "embedding_dim": 3})
