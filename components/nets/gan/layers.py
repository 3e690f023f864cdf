"""Layers that GAN variants share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


def doublings(size: int) -> int:
    """How often 4 doubles to `size`. Raises ValueError if it does not."""
    if size < 8 or size & (size - 1):
        raise ValueError(f"expected an image side of 8, 16, 32, 64, ..., found {size}")
    return size.bit_length() - 3


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, found by power iteration (Miyato et al. 2018, algorithm 1).

    The vector `u` moves on only with the weight: while another phase steps, or in evaluation, it rests. Not torch's
    own spectral_norm, whose vectors move in every training forward, whoever trains.
    """

    def __init__(self, weight: Tensor, rows_dim: int):
        super().__init__()
        self.rows_dim = rows_dim
        self.register_buffer("u", F.normalize(torch.randn(weight.shape[rows_dim]), dim=0))

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, self.rows_dim).flatten(1)

    def forward(self, weight: Tensor) -> Tensor:
        if weight.is_meta:  # has no autocast to leave
            return self._divided(weight)
        with torch.autocast(weight.device.type, enabled=False):  # bfloat16 would blur the singular value
            return self._divided(weight)

    def _divided(self, weight: Tensor) -> Tensor:
        matrix = self.matrix(weight)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            if self.training and weight.requires_grad:
                self.u.copy_(u)
        sigma = torch.dot(u, matrix @ v)
        return weight / sigma.masked_fill(~(sigma > 1e-6), 1.0)  # weights that begin at 0 have no direction yet


def spectral_normalise(net: nn.Module) -> None:
    """Puts spectral normalisation on every linear map of `net`, in place: convolutions, linear layers, embeddings."""
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            rows_dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0  # the dimension of outputs
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight, rows_dim))


class MinibatchStd(nn.Module):
    """Adds a channel: the standard deviation over groups of rows, averaged over all features (Karras et al. 2018,
    section 3). Groups are of four rows, or the next smaller divisor of the batch."""

    def forward(self, maps: Tensor) -> Tensor:
        size, _, height, width = maps.shape
        group = next(number for number in (4, 3, 2, 1) if size % number == 0)
        groups = maps.unflatten(0, (group, -1))  # (group, B / group, C, H, W)
        deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        return torch.cat([maps, deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)], dim=1)


class PairwiseDistances(nn.Module):
    """Features (B, F) -> (B, kernels): how near all other rows are (Salimans et al. 2016, section 3.2)."""

    def __init__(self, features: int, kernels: int, dim: int):
        super().__init__()
        self.shape = (kernels, dim)
        self.project = nn.Linear(features, kernels * dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        measured = self.project(features).unflatten(1, self.shape)  # (B, kernels, dim)
        distances = (measured[:, None] - measured[None]).abs().sum(3)  # (B, B, kernels)
        return torch.exp(-distances).sum(1) - 1  # less the row itself


class SelfAttention(nn.Module):
    """Attention over all places, added with a gain that begins at 0 (Zhang et al. 2019, section 3)."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Conv2d(channels, inner, 1, bias=False)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)
        self.value = nn.Conv2d(channels, max(1, channels // 2), 1, bias=False)
        self.out = nn.Conv2d(max(1, channels // 2), channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)  # (B, C / 8, H W)
        # keys and values at half the resolution: a quarter of the memory
        key, value = (F.max_pool2d(part(x), 2).flatten(2) for part in (self.key, self.value))
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=2)
        return x + self.gain * self.out((value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose gain and bias are linear in a condition (B, D) (Dumoulin et al. 2017; Brock et al.
    2019, appendix B)."""

    def __init__(self, channels: int, condition_dim: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Linear(condition_dim, channels, bias=False)
        self.bias = nn.Linear(condition_dim, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = 1 + self.gain(condition), self.bias(condition)
        return torch.addcmul(bias[:, :, None, None], self.norm(x), gain[:, :, None, None])
