"""An autoencoder of two convolutions, for rows of any rank; latents have half of each side."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.families.base import Autoencoder, Losses, Phase
from components.training.optimizers import OptimizerConfig

CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


class Config(Strict):
    latent_channels: int = Field(2, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-2)


class Net(nn.Module):
    def __init__(self, rank: int, channels: int, latent_channels: int):
        super().__init__()
        down, up = CONVOLUTIONS[rank]
        self.down = down(channels, 2 * latent_channels, 2, stride=2)
        self.up = up(latent_channels, channels, 2, stride=2)

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.down(rows).chunk(2, dim=1)
        return mean, torch.exp(0.5 * logvar.clamp(-10, 10))

    def decode(self, latents: Tensor) -> Tensor:
        return self.up(latents)

    def forward(self, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.encode(rows)
        return self.decode(mean + std * noise), mean


class Model(Autoencoder):
    Config = Config

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        channels, *sides = data.shape
        net = Net(len(sides), channels, config.latent_channels)
        self.nets = nn.ModuleDict({"autoencoder": net})
        self.calls = {"decoder": net.decode}
        self.phases = (Phase("autoencode", "autoencoder", self.loss, config.optimizer),)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        _, *sides = self.data.shape
        return (self.config.latent_channels, *(side // 2 for side in sides))

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        rows = self.medium.rows(batch.columns)
        decoded, mean = net(rows, batch.draws.normal("posterior", self.latent_shape))
        return {"loss": (decoded - rows).square().mean() + 1e-3 * mean.square().mean()}
