"""A classifier of two linear layers, for rows of any rank."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo
from components.families.base import Judge, Losses, Phase
from components.training.optimizers import OptimizerConfig


class Config(Strict):
    feature_dim: int = 6
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-2)


class Net(nn.Module):
    def __init__(self, shape: tuple[int, ...], num_classes: int, feature_dim: int):
        super().__init__()
        self.project = nn.Linear(math.prod(shape), feature_dim)
        self.classify = nn.Linear(feature_dim, num_classes)

    def features(self, rows: Tensor) -> Tensor:
        return self.project(rows.flatten(1)).tanh()

    def logits(self, features: Tensor) -> Tensor:
        return self.classify(features)

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits(self.features(rows))


class Model(Judge):
    Config = Config

    def __init__(self, config: Config, data: DataInfo):
        self.config, self.data = config, data
        self.nets = nn.ModuleDict({"classifier": Net(data.shape, len(data.classes), config.feature_dim)})
        self.phases = (Phase("classify", "classifier", self.loss, config.optimizer),)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        return {"loss": F.cross_entropy(net(self.medium.rows(batch.columns)), batch.columns["label"])}
