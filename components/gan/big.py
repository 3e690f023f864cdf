"""What makes BigGAN of SAGAN, but for the class: BigBiGAN shares it (Brock et al. 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from components.config import Strict
from components.data.randomness import Draws
from components.families.base import DataInfo
from components.gan.losses import LossName
from components.gan.residual import ResidualConfig, ResidualGAN
from components.gan.standing import WHOLE, Standing, truncated_normal
from components.sampling.requests import Request
from components.sampling.trajectories import Call, Trajectory
from components.training.optimizers import OptimizerConfig


class BigConfig(ResidualConfig):
    latent_dim: int = Field(120, ge=1)
    embedding_dim: int = Field(128, ge=1)  # of the class, shared by all norms
    loss: LossName = "hinge"
    spectral_norm: tuple[Literal["generator", "discriminator"], ...] = ("generator", "discriminator")
    orthogonal: float = Field(1e-4, ge=0)  # Brock et al. 2019, section 3.1
    num_critic_steps: int = Field(2, ge=1)
    # Brock et al. 2019, appendix C
    generator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=5e-5, betas=(0.0, 0.999))
    discriminator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=2e-4, betas=(0.0, 0.999))


class BigSettings(Strict):
    truncation: float = Field(WHOLE, gt=0, le=WHOLE)  # z is drawn within this many standard deviations


class Big(ResidualGAN):
    Config = BigConfig
    Settings = BigSettings

    def __init__(self, config: BigConfig, data: DataInfo):
        super().__init__(config, data)
        classes = self.num_classes if self.conditional else 0
        self.standing = Standing(self.nets["generator"], config.latent_dim, classes)
        self.calls = {"generator": self.standing}

    def residual_generator(self) -> nn.Module:
        return super().residual_generator(embedding_dim=self.config.embedding_dim, split_latent=True)

    def _trajectory(self, request: Request) -> Trajectory:
        truncation = torch.full((len(request.seeds),), request.settings.truncation, device=request.seeds.device)
        z = truncated_normal(Draws.of_seeds(request.seeds), "sample", self.config.latent_dim, truncation)
        label = {"label": request.conditions.label} if self.conditional else {}
        return (yield Call("generator", {"z": z, "truncation": truncation, **label}))
