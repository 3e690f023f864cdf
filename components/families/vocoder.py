"""A vocoder as an autoencoder of sound: its latents are log-mel spectra, so that diffusion on latents is diffusion of
spectra, and its decoder makes waves of them, through Griffin and Lim's phases or phases of its own."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from components import spectra
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.errors import SamplerError
from components.families.base import Autoencoder, Losses, Phase, Tiny
from components.nets.vocoder import Vocoder
from components.training.optimizers import OptimizerConfig


class Config(Strict):
    bands: int = Field(32, ge=2)  # of the mel spectrum: the latent's height
    hop: int | None = Field(None, ge=2)  # samples a frame: the latent's width is a row's length over it; None: 16 ms
    width: int = Field(96, ge=1)
    depth: int = Field(3, ge=1)
    steps: int = Field(32, ge=0)  # of Griffin and Lim's algorithm
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
        net = Vocoder(rate, self.hop, config.bands, config.width, config.depth, config.steps)
        self.nets = nn.ModuleDict({"autoencoder": net})
        self.calls = {"decoder": net.decode}
        # in float32: decibels near the floor are small differences
        self.phases = (Phase("spectrum", "autoencoder", self.loss, config.optimizer, low_precision=False),)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 1, self.config.bands, self.data.shape[1] // self.hop

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The mean error of all frequencies' decibels, half of the span from the floor to full scale being 1."""
        waves = self.medium.rows(batch.columns)[:, 0]
        wanted = spectra.compressed(spectra.stft(waves, self.hop).abs())
        values, _ = net(spectra.log_mel(waves, self.medium.rate, self.hop, self.config.bands))
        return {"loss": (values - wanted).abs().mean()}

    def bounded(self, decoded: Tensor) -> Tensor:
        return decoded.clamp(-1, 1)


TINY = Tiny(
    {"bands": 4, "hop": 8, "width": 8, "depth": 1, "steps": 2},
    data=DataInfo(shape=(1, 64), medium="audio", rate=8000, classes=("nought", "one", "two"), speakers=("ann", "bob")),
)
