"""The encoder and the joint discriminator of BigBiGAN (Donahue and Simonyan 2019, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.gan.critic import CriticInputs, GroupedCritic
from components.nets.gan.residual import Pooled, Trunk


class Encoder(nn.Module):
    """Images (B, C, size, size) -> codes (B, latent_dim); `features` gives the (B, dim) before them."""

    def __init__(self, channels: int, size: int, width: int, latent_dim: int, attention_at: int | None):
        super().__init__()
        self.trunk = Trunk(channels, size, width, attention_at)
        self.head = Pooled(self.trunk.channels, self.trunk.channels)
        self.linear = nn.Linear(self.head.dim, latent_dim)

    def features(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images)) / 16  # a mean over the 4x4 places: codes begin at unit scale

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.features(images))


class JointCritic(GroupedCritic):
    """Scores (B, 3): of the image alone, of the code alone, of the pair."""

    mixes_rows = False

    def __init__(self, channels: int, size: int, width: int, latent_dim: int, attention_at: int | None):
        super().__init__()
        self.trunk = Trunk(channels, size, width, attention_at)
        self.head = Pooled(self.trunk.channels, self.trunk.channels)
        dim = self.head.dim
        self.codes = Perceptron(latent_dim, dim)
        self.pair = Perceptron(2 * dim, dim)
        self.scores = nn.ModuleList([nn.Linear(dim, 1) for _ in range(3)])

    def score_group(self, inputs: CriticInputs) -> tuple[Tensor, Tensor]:
        images, codes = self.head(self.trunk(inputs["images"])), self.codes(inputs["codes"])
        parts = [images, codes, self.pair(torch.cat([images, codes], dim=1))]
        return torch.cat([score(part) for score, part in zip(self.scores, parts, strict=True)], dim=1), images


class Perceptron(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.first, self.second = nn.Linear(before, after), nn.Linear(after, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))
