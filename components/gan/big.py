"""The part of BigGAN that BigBiGAN shares: its defaults, its generator and truncated sampling (Brock et al. 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from components.config import Strict
from components.gan.base import GAN
from components.gan.config import ResidualConfig
from components.gan.losses import LossName
from components.gan.standing_statistics import WHOLE, StandingStatistics, truncated_normal
from components.sampling.blends import drawn
from components.sampling.requests import Request
from components.training.optimizers import OptimizerConfig


class BigConfig(ResidualConfig):
    latent_dim: int = Field(120, ge=1)
    embedding_dim: int = Field(128, ge=1)  # of the class, shared by all norms
    loss: LossName = "hinge"
    spectral_norm: tuple[Literal["generator", "discriminator"], ...] = ("generator", "discriminator")
    orthogonal: float = Field(1e-4, ge=0)  # Brock et al. 2019, section 3.1
    num_critic_steps: int = Field(2, ge=1)
    # its optimizer (Brock et al. 2019, appendix C)
    generator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=5e-5, betas=(0.0, 0.999))
    discriminator: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=2e-4, betas=(0.0, 0.999))


class BigSettings(Strict):
    truncation: float = Field(WHOLE, gt=0, le=WHOLE)  # z is drawn within this many standard deviations


def generator_options(config: BigConfig) -> dict[str, int | bool]:
    """The arguments of nets.gan.residual.Generator that set BigGAN's apart from SAGAN's."""
    return {"embedding_dim": config.embedding_dim, "split_latent": True}


def standing_statistics(gan: GAN) -> StandingStatistics:
    """A GAN's generator with standing statistics in its norms."""
    classes = gan.num_classes if gan.conditional else 0
    return StandingStatistics(gan.nets["generator"], gan.config.latent_dim, classes)


def truncated_inputs(gan: GAN, request: Request) -> dict[str, Tensor]:
    """Inputs of `standing_statistics` for a request's rows, z within the truncation that it asks for."""
    truncation = torch.full((len(request.seeds),), request.settings.truncation, device=request.seeds.device)
    z = drawn(request, lambda draws: truncated_normal(draws, "sample", gan.config.latent_dim, truncation))
    return {"z": z, "truncation": truncation, **gan.requested_condition(request)}
