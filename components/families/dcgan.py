"""DCGAN: binary cross-entropy and the classic alternation (Goodfellow et al. 2014; Radford et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.data import Batch
from components.families.base import DataInfo, Losses, Phase
from components.families.gan import GAN, ConvConfig
from components.optimizers import OptimizerConfig

ADAM = OptimizerConfig(name="adam", learning_rate=2e-4, betas=(0.5, 0.999))  # Radford et al. 2016, section 4


class Config(ConvConfig):
    generator: OptimizerConfig = ADAM
    discriminator: OptimizerConfig = ADAM


class DCGAN(GAN):
    Config = Config

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.adopt_convolutional(batch_norm=True)
        self.phases = (
            Phase("discriminate", "discriminator", self.discriminator_loss, config.discriminator),
            Phase("generate", "generator", self.generator_loss, config.generator),
        )

    def discriminator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        real, fake = net(self.reals(batch), self.fakes(batch))
        loss_real, loss_fake = bce(real, 1.0), bce(fake, 0.0)
        return {"loss": loss_real + loss_fake, "loss_real": loss_real, "loss_fake": loss_fake}

    def generator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        (score,) = self.nets["discriminator"](net(self.latents(batch.draws, "generate")))
        return {"loss": bce(score, 1.0)}  # the non-saturating loss of Goodfellow et al. 2014, section 3


def bce(logits: Tensor, truth: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))
