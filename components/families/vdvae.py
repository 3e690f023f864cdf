"""VDVAE: a hierarchical variational autoencoder, latents at every resolution under priors that are read off the coarser
ones, and a discretised mixture of logistics a pixel (Child 2021). Steps that the paper would skip for the size of their
gradient are shortened by `training.clip_norm`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from components.autoencoding.variational import IMPORTANCE_SAMPLES, importance_bound
from components.conditioning.classes import blended_label, label_between
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Losses, Phase, Sampler, Tiny, Told
from components.likelihood.contract import Likelihood, bits_per_value
from components.likelihood.dequantise import levels
from components.likelihood.logistics import draw_rows, log_probability, num_outputs, start_scales
from components.metrics.held_out import BITS
from components.nets.vdvae import HierarchicalVAE
from components.sampling.blends import drawn, lerp
from components.sampling.requests import BLEND, Request
from components.sampling.trajectories import Call, Trajectory
from components.shapes import refuse_unless_planar
from components.training.optimizers import OptimizerConfig

_EDGE = 2.0**-24  # nearest to 0 and to 1 that a uniform number comes


class Config(Strict):
    # with latents, by resolution; each but the last halves the side
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 4, 3, 2), min_length=1)
    layers: int = Field(1, ge=1)  # blocks of the encoder, a resolution
    width: int = Field(32, ge=1)  # channels of the stream
    middle: int = Field(16, ge=1)  # channels between, within a block
    latent_channels: int = Field(4, ge=1)  # of a block
    kl_warmup: int = Field(150, ge=0)  # steps over which latents come to cost what they do, so that some are learnt
    mixtures: int = Field(3, ge=1)  # logistics of a pixel
    classes: bool = True  # whether the density is one given the class, where the data have some
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, betas=(0.9, 0.9), warmup=50, schedule="cosine")


class Settings(Strict):
    """`temperature`: of the priors' standard deviations; `pixel_temperature`: of a pixel's choice among its logistics
    and of their scales, 0 for the likeliest logistic's mean."""

    temperature: float = Field(1.0, ge=0, le=2)
    pixel_temperature: float = Field(1.0, ge=0, le=2)


class Model(Sampler):
    Config = Config
    Settings = Settings
    kept = ("vdvae",)
    needs_class = True
    held_out = BITS

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        refuse_unless_planar(data.shape, 2 ** (len(config.blocks) - 1), "vdvae")
        self.levels = levels(self.medium)
        self.accepts = frozenset({BLEND, "label"} if config.classes and data.classes else {BLEND})
        net = HierarchicalVAE(
            data.shape,
            num_outputs(data.shape[0], config.mixtures),
            config.width,
            config.middle,
            config.latent_channels,
            config.blocks,
            config.layers,
            len(data.classes) if self.conditional else 0,
        )
        start_scales(net.conv_out.bias, data.shape[0], config.mixtures)
        self.nets = nn.ModuleDict({"vdvae": net})
        self.calls = {"decoder": net.sample}
        self.phases = (Phase("autoencode", "vdvae", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """Bits per dimension of the batch's rows by the evidence lower bound, those of pixels and of latents; less of
        the latents' at first."""
        rows = self.medium.rows(batch.columns)
        noise = batch.draws.normal("posterior", (self.nets["vdvae"].num_latents,))
        found = net(rows, noise, batch.columns["label"] if self.conditional else None)
        told = log_probability(found.numbers, rows, self.levels, self.config.mixtures).float()
        reconstruction, kl = (bits_per_value(nats.mean(), rows[0].numel()) for nats in (told, -found.divergence))
        weight = min(1.0, (batch.step + 1) / self.config.kl_warmup) if self.config.kl_warmup else 1.0
        return {"loss": reconstruction + weight * kl, "reconstruction": reconstruction, "kl": kl}

    # -- likelihood ---------------------------------------------------------------------------------------------------

    @property
    def likelihood(self) -> Likelihood:
        return Likelihood("bound", "none", self._log_probability)

    def _log_probability(self, rows: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        return importance_bound(self.log_weights(rows, label, draws, IMPORTANCE_SAMPLES))

    def log_weights(self, rows: Tensor, label: Tensor | None, draws: Draws, count: int) -> Tensor:
        """(B, count) log p(x, z) / q(z | x) in nats, of latents drawn from the posterior of rows (B, C, H, W)."""
        found = []
        for number in range(count):
            told, encoded = self._encoded(rows, label, draws.fold(number))
            found.append(told + encoded.log_ratio)
        return torch.stack(found, 1)

    def held_out_losses(self, columns: Mapping[str, Tensor], draws: Draws) -> Tensor:
        """(B, 1) bits per dimension by the evidence lower bound, as cheap as a step forward."""
        rows = self.medium.rows(columns)
        told, encoded = self._encoded(rows, columns.get("label"), draws)
        return bits_per_value(told - encoded.divergence, rows[0].numel())[:, None]

    def _encoded(self, rows: Tensor, label: Tensor | None, draws: Draws):
        """log p(x | z) (B,) in nats of one draw of the latents a row, and what the net gave."""
        net = self.nets["vdvae"]
        encoded = net(rows, draws.normal("posterior", (net.num_latents,)), label if self.conditional else None)
        return log_probability(encoded.numbers, rows, self.levels, self.config.mixtures), encoded

    def between(self, starts: Told, ends: Told, share: Tensor) -> Tensor:
        """By the posteriors' means."""
        net, labelled = self.nets["vdvae"], self.conditional
        nothing = torch.zeros(len(share), net.num_latents, device=share.device)
        first, last = (net(rows, nothing, told if labelled else None).latents for rows, told in (starts, ends))
        label = label_between(starts[1], ends[1], share, self.num_classes) if labelled else None
        numbers = net.sample(lerp(first, last, share), label)
        shape = self.config.mixtures + self.data.shape[0], *self.data.shape[1:]
        return self._pixels(numbers, numbers.new_zeros(len(numbers), *shape), temperature=0.0)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _trajectory(self, request: Request) -> Trajectory:
        settings, count = request.settings, (self.nets["vdvae"].num_latents,)
        inputs = {"noise": settings.temperature * drawn(request, lambda draws: draws.normal("latents", count))}
        if self.conditional:
            inputs["label"] = blended_label(request.conditions.label, request.blend, self.num_classes)
        numbers = yield Call("decoder", inputs)
        shape = self.config.mixtures + self.data.shape[0], *self.data.shape[1:]
        noise = drawn(request, lambda draws: draws.normal("pixels", shape))
        return self._pixels(numbers, noise, settings.pixel_temperature)

    def _pixels(self, numbers: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Rows (B, C, H, W) of the numbers of their pixels' density, by standard normal noise (B, K + C, H, W)."""
        uniform = torch.special.ndtr(noise).clamp(_EDGE, 1 - _EDGE)  # normal before, so that it has arcs
        return draw_rows(numbers, uniform, self.levels, self.config.mixtures, temperature)


TINY = Tiny({"kl_warmup": 2, "blocks": [1, 1], "width": 4, "middle": 4, "latent_channels": 2, "mixtures": 2})
