"""Diffusion by a net of linear layers over channels, for rows or latents of any rank."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from components.config import Strict
from components.diffusion import config as diffusion
from components.families import latent_diffusion
from components.nets.blocks import embedded, sinusoidal_embedding


class Net(nn.Module):
    """x (B, C, ...) -> its shape; every place alone."""

    def __init__(self, channels: int, num_classes: int, width: int):
        super().__init__()
        self.width = width
        self.first, self.last = nn.Linear(channels, width), nn.Linear(width, channels)
        self.level, self.label = nn.Linear(width, width), nn.Embedding(num_classes, width)

    def forward(self, x: Tensor, level: Tensor, context: Tensor, label: Tensor) -> Tensor:
        told = self.level(sinusoidal_embedding(level, self.width)) + embedded(self.label, label)
        hidden = self.first(x.movedim(1, -1))
        hidden = hidden + told.view(len(x), *[1] * (x.ndim - 2), -1)
        return self.last(F.silu(hidden)).movedim(-1, 1)


class Backbone(Strict):
    name: Literal["toy"] = "toy"
    width: int = 8
    context_dim: int = 4
    class_dim: int = 4
    attends: bool = False
    hides_padding: bool = False
    reuses: bool = False
    blocks: int = 0

    def refuse_unfit(self, shape: tuple[int, ...], name: str) -> None:
        """It takes all."""

    def build(self, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return Net(shape[0], num_classes, self.width)


class Config(diffusion.Config):
    backbone: Backbone = Backbone()


class Model(latent_diffusion.Model):
    Config = Config
