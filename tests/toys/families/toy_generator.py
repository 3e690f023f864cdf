"""A generator of one linear layer, for rows of any rank."""

from __future__ import annotations

import math

from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Losses, NoSettings, Phase, Sampler
from components.metrics.figures import Definition, Figures, named
from components.sampling.requests import Request
from components.sampling.trajectories import Call, Trajectory
from components.training.optimizers import OptimizerConfig

CONTRAST = Definition(
    name="contrast",
    label="contrast",
    explanation="the standard deviation of all values of generated rows",
    kind="score",
    better="higher",
)


class Config(Strict):
    latent_dim: int = 4
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-2)


class Net(nn.Module):
    def __init__(self, latent_dim: int, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(latent_dim, math.prod(shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).tanh().unflatten(1, self.shape)


class Model(Sampler):
    Config = Config
    Settings = NoSettings
    kept = ("generator",)

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        net = Net(config.latent_dim, data.shape)
        self.nets = nn.ModuleDict({"generator": net})
        self.calls = {"generator": net}
        self.phases = (Phase("generate", "generator", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        made = net(batch.draws.normal("z", (self.config.latent_dim,)))
        return {"loss": (made - self.medium.rows(batch.columns)).square().mean()}

    def figures(self, rows: Tensor, real: Tensor) -> Figures:
        return named(CONTRAST.figure(rows.std()))

    def _trajectory(self, request: Request) -> Trajectory:
        z = Draws.of_seeds(request.seeds).normal("z", (self.config.latent_dim,))
        return (yield Call("generator", {"z": z}))
