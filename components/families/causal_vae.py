"""The autoencoder of films: causal in time, so that prefixes encode to prefixes and a still image is a film of one
frame (Yu et al. 2024, MAGVIT-v2; Yang et al. 2024, CogVideoX, section 2.1)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from components.autoencoding.variational import free_bits_kl
from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.media.video import FACTOR
from components.errors import SamplerError
from components.families.base import Autoencoder, Family, Losses, Phase, Role, Tiny
from components.families.vae import RECONSTRUCTION
from components.nets.autoencoder.causal import CausalAutoencoder
from components.nets.blocks import norm_groups
from components.shapes import refuse_unless_film
from components.training.optimizers import OptimizerConfig

IMAGE = "image"  # the input whose weights it begins with
HALVINGS = FACTOR.bit_length() - 1  # of the time


class Config(Strict):
    latent_channels: int = Field(4, ge=1)
    widths: tuple[int, ...] = Field((16, 32), min_length=1)  # channels by resolution; each but the last halves the side
    layers: int = Field(1, ge=1)  # residual blocks a resolution
    norm_groups: int = Field(default_factory=lambda given: norm_groups(given["widths"]), ge=1)
    reconstruction: Literal["mse", "l1"] = "mse"
    kl_weight: float = Field(1e-2, ge=0)  # 1 is the evidence lower bound
    free_bits: float = Field(0.0, ge=0)  # nats of each latent channel that cost nothing
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=50)


class Model(Autoencoder):
    Config = Config
    causal = True

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        self.factor = 2 ** (len(config.widths) - 1)
        refuse_unless_film(data.shape, FACTOR, self.factor, "causal_vae")
        layout = config.latent_channels, config.widths, config.layers, HALVINGS, config.norm_groups
        net = CausalAutoencoder(data.shape[0], *layout)
        self.nets = nn.ModuleDict({"autoencoder": net})
        self.calls = {"decoder": net.decode}
        self.phases = (Phase("autoencode", "autoencoder", self.loss, config.optimizer),)

    @classmethod
    def roles(cls, config: Config) -> dict[str, Role]:
        return {IMAGE: Role(family="vae")}

    def receive(self, role: str, given: Family) -> None:
        """Begins with the weights of an autoencoder of images. Raises SamplerError of one of another layout."""
        if role != IMAGE:
            return super().receive(role, given)
        try:
            self.nets["autoencoder"].inflate(given.nets["autoencoder"].state_dict())
        except ValueError as error:
            raise SamplerError(f"causal_vae: {IMAGE}: {error}") from None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        _, frames, height, width = self.data.shape
        return self.config.latent_channels, 1 + frames // FACTOR, height // self.factor, width // self.factor

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        config, videos = self.config, self.medium.rows(batch.columns)
        answer = net(videos, batch.draws.normal("posterior", self.latent_shape))
        misfit = RECONSTRUCTION[config.reconstruction](answer.images, videos).flatten(1).sum(1).mean()
        kl = free_bits_kl(answer.mean, answer.std, config.free_bits)
        return {"loss": misfit + config.kl_weight * kl, "reconstruction": misfit, "kl": kl}


TINY = Tiny(
    {"latent_channels": 2, "widths": [4, 8]},
    data=DataInfo(shape=(1, 5, 8, 8), medium="video", classes=("nought", "one", "two")),
)
