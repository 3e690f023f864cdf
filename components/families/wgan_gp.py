"""WGAN-GP: the Wasserstein loss with a gradient penalty (Gulrajani et al. 2017)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from components.data import Batch
from components.families.base import DataInfo, Losses, Phase
from components.families.gan import GAN, ConvConfig
from components.optimizers import OptimizerConfig

ADAM = OptimizerConfig(name="adam", learning_rate=1e-4, betas=(0.0, 0.9))  # Gulrajani et al. 2017, Algorithm 1


class Config(ConvConfig):
    penalty_weight: float = Field(10.0, ge=0)
    num_critic_steps: int = Field(5, ge=1)  # the critic's steps for each of the generator's
    generator: OptimizerConfig = ADAM
    critic: OptimizerConfig = ADAM


class WGANGP(GAN):
    Config = Config

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.adopt_convolutional(batch_norm=False)
        self.phases = (
            Phase("criticise", "discriminator", self.critic_loss, config.critic),
            Phase("generate", "generator", self.generator_loss, config.generator, every=config.num_critic_steps),
        )

    def critic_loss(self, net: nn.Module, batch: Batch) -> Losses:
        real, fake = self.reals(batch), self.fakes(batch)
        between = interpolate(real, fake, batch.draws.uniform("interpolate")).requires_grad_()
        # the critic treats rows alone, so one larger batch scores all three
        (scores,) = net(torch.cat([real, fake, between]))
        score_real, score_fake, score_between = scores.chunk(3)
        wasserstein = score_real.mean() - score_fake.mean()
        penalty = gradient_penalty(score_between, between)
        return {
            "loss": self.config.penalty_weight * penalty - wasserstein,
            "wasserstein": wasserstein,
            "gradient_penalty": penalty,
        }

    def generator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        (score,) = self.nets["discriminator"](net(self.latents(batch.draws, "generate")))
        return {"loss": -score.mean()}


def interpolate(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """A point on the line between each pair of rows; `share` (B,) is the part of the real one."""
    return torch.lerp(fake, real, share[:, None, None, None])


def gradient_penalty(scores: Tensor, inputs: Tensor) -> Tensor:
    """Mean squared distance from 1 of each row's gradient norm (Gulrajani et al. 2017, equation 3)."""
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
