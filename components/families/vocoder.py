"""A vocoder as an autoencoder of sound: its latents are log-mel spectra, so that diffusion on latents is diffusion of
spectra, and its decoder makes waves of them, through Griffin and Lim's phases or phases of its own."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from components import spectra
from components.autoencoding.adversarial import AdversarialConfig, adaptive_weight, hinge
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.errors import SamplerError
from components.families.base import Autoencoder, Losses, Phase, Tiny
from components.nets.vocoder import SpectraDiscriminator, Vocoder, apart, resolutions
from components.training.optimizers import OptimizerConfig


class Config(Strict):
    bands: int = Field(32, ge=2)  # of the mel spectrum: the latent's height
    hop: int | None = Field(None, ge=2)  # samples a frame: the latent's width is a row's length over it; None: 16 ms
    width: int = Field(96, ge=1)
    depth: int = Field(3, ge=1)
    steps: int = Field(8, ge=0)  # of Griffin and Lim's algorithm; more are no nearer by what a judge hears
    # the net tells phases, too, and learns them against discriminators of spectra; no algorithm finds them then
    adversarial: AdversarialConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=20)


class Model(Autoencoder):
    Config = Config

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        if data.medium != "audio" or data.autoencoder is not None:
            raise SamplerError(f"vocoder: expected clips of sound, found {self.medium.plural}")
        rate = self.medium.rate
        self.hop = config.hop or spectra.usual_hop(rate)
        if data.shape[1] % self.hop:
            nearest = max(1, round(data.shape[1] / self.hop)) * self.hop
            raise SamplerError(
                f"vocoder: expected clips of whole hops of {self.hop} samples, found {data.shape[1]} samples; "
                f"data.seconds: {nearest / rate:g} has them"
            )
        phased = config.adversarial is not None
        net = Vocoder(rate, self.hop, config.bands, config.width, config.depth, config.steps, phased)
        self.nets = nn.ModuleDict({"autoencoder": net})
        self.calls = {"decoder": net.decode}
        # in float32: decibels near the floor are small differences
        # and phases bring a discriminator, whose weight asks for a backward pass of its own
        how = {"low_precision": False, "one_backward": not phased}
        self.phases = (Phase("spectrum", "autoencoder", self.loss, config.optimizer, **how),)
        if phased:
            self._add_discriminator(config.adversarial)

    def _add_discriminator(self, config: AdversarialConfig) -> None:
        self.nets["discriminator"] = SpectraDiscriminator(resolutions(self.hop), config.width, config.halvings)
        moves = Phase("discriminate", "discriminator", self.discriminator_loss, config.optimizer, low_precision=False)
        self.phases = (*self.phases, moves)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 1, self.config.bands, self.data.shape[1] // self.hop

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The mean error of all frequencies' decibels, half of the span from the floor to full scale being 1; with
        phases that of the waves' own spectra besides, and what the discriminator says."""
        waves = self.medium.rows(batch.columns)[:, 0]
        wanted = spectra.compressed(spectra.stft(waves, self.hop).abs())
        values, phases = net(self._mel(waves))
        loss = (values - wanted).abs().mean()
        if phases is None:
            return {"loss": loss}
        config, told = self.config.adversarial, self.nets["autoencoder"].waves(values, phases)
        terms = {"spectrum": loss, "waves": apart(told, waves, self.hop)}
        loss = loss + terms["waves"]
        terms["adversarial"] = -self.nets["discriminator"](told).mean()
        pull = adaptive_weight(loss, terms["adversarial"], self.nets["autoencoder"].head.weight)
        loss = loss + config.weight * self._playing(batch) * pull * terms["adversarial"]
        return {"loss": loss, **terms, "adaptive_weight": pull}

    def discriminator_loss(self, net: nn.Module, batch: Batch) -> Losses:
        waves = self.medium.rows(batch.columns)[:, 0]
        with torch.no_grad():
            told = self.nets["autoencoder"].waves(*self.nets["autoencoder"](self._mel(waves)))
        real, fake = net(torch.cat([waves, told])).chunk(2)
        loss = self._playing(batch) * hinge(real, fake)
        return {"loss": loss, "score_real": real.mean(), "score_fake": fake.mean()}

    def _mel(self, waves: Tensor) -> Tensor:
        return spectra.log_mel(waves, self.medium.rate, self.hop, self.config.bands)

    def _playing(self, batch: Batch) -> float:
        return float(batch.step >= self.config.adversarial.start)

    def bounded(self, decoded: Tensor) -> Tensor:
        return decoded.clamp(-1, 1)


TINY = Tiny(
    {"bands": 4, "hop": 8, "width": 8, "depth": 1, "steps": 2},
    data=DataInfo(shape=(1, 64), medium="audio", rate=8000, classes=("nought", "one", "two"), speakers=("ann", "bob")),
)
