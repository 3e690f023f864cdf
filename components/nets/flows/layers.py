"""Layers of normalizing flows on feature maps (B, C, H, W).

`forward(x, label)` -> the layer's output and, a row, the logarithm of the absolute determinant of its Jacobian (B,);
`inverse(y, label)` -> x. Everything is a function of a row alone. Labels are (B,) int64, or weights (B, num_classes) of
what lies between classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import embedded
from components.shapes import per_channel

_SHIFT = 2.0  # of a scale's logit: scales begin near 0.88 (Kingma and Dhariwal 2018, released code)


def standard_log_density(latents: Tensor) -> Tensor:
    """Of the standard Gaussian, (B, ...) -> (B,) float64 in nats: in float32 the sum over a row loses what bits per
    dimension show."""
    return -0.5 * (latents.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)


class Invertible(nn.Module):
    """A layer that can be run backwards."""

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class ActNorm(Invertible):
    """A scale and a bias a channel, which `begin` sets so that a batch comes out with mean 0 and variance 1 (Kingma and
    Dhariwal 2018, section 3.1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        axes = (0, 2, 3)
        std = x.double().std(axes, correction=0).float()
        self.bias.copy_(-x.double().mean(axes).float())
        self.log_scale.copy_(-(std + 1e-6).log())

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = (x + per_channel(self.bias, x)) * per_channel(self.log_scale.exp(), x)
        return y, (self.log_scale.sum() * x[0, 0].numel()).expand(len(x))

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        return y * per_channel((-self.log_scale).exp(), y) - per_channel(self.bias, y)


class InvertibleConv(Invertible):
    """A 1x1 convolution by a matrix P L (U + diag(s)) whose P stays, L is unit lower and U strictly upper triangular
    (Kingma and Dhariwal 2018, section 3.2). It begins as a random rotation."""

    def __init__(self, channels: int):
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())

    def weight(self, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.lower.dtype
        eye = torch.eye(len(self.sign), device=self.sign.device, dtype=dtype)
        lower = self.lower.to(dtype).tril(-1) + eye
        upper = self.upper.to(dtype).triu(1) + torch.diag(self.sign.to(dtype) * self.log_diagonal.to(dtype).exp())
        return self.permutation.to(dtype) @ lower @ upper

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logdet = self.log_diagonal.sum() * x[0, 0].numel()
        return F.conv2d(x, self.weight()[:, :, None, None]), logdet.expand(len(x))

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        inverse = torch.linalg.inv(self.weight(torch.float64)).to(y.dtype)
        return F.conv2d(y, inverse[:, :, None, None])


class CouplingNet(nn.Module):
    """What a coupling learns from the part that it leaves: (B, in, H, W) -> shift and scale (B, 2 * out, H, W). A class
    shifts the hidden channels. The last layer begins at zero, so that the coupling begins as a constant."""

    def __init__(self, in_channels: int, out_channels: int, width: int, num_classes: int, blocks: int):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(blocks))
        self.middle = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, 2 * out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h = self.first(x)
        if self.label is not None:
            h = h + embedded(self.label, label)[:, :, None, None]
        for block in self.blocks:
            h = block(h)
        return self.last(F.relu(self.middle(F.relu(h))))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Coupling(Invertible):
    """An affine coupling: half of the channels, the first or the last, scales and shifts the other (Dinh et al. 2017,
    section 3.2, with the bounded scale of Kingma and Dhariwal 2018)."""

    def __init__(self, channels: int, width: int, num_classes: int, blocks: int = 0, keeps_first: bool = True):
        super().__init__()
        first = channels // 2
        kept = first if keeps_first else channels - first
        self.first, self.keeps_first = first, keeps_first
        self.net = CouplingNet(kept, channels - kept, width, num_classes, blocks)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = x[:, : self.first], x[:, self.first :]
        return (one, other) if self.keeps_first else (other, one)

    def _whole(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved] if self.keeps_first else [moved, kept], dim=1)

    def _affine(self, kept: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, scale = self.net(kept, label).chunk(2, dim=1)
        return shift, F.logsigmoid(scale + _SHIFT)

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, moved = self._parts(x)
        shift, log_scale = self._affine(kept, label)
        return self._whole(kept, (moved + shift) * log_scale.exp()), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        kept, moved = self._parts(y)
        shift, log_scale = self._affine(kept, label)
        return self._whole(kept, moved * (-log_scale).exp() - shift)


class CheckerboardCoupling(Invertible):
    """An affine coupling of the places of one colour of a checkerboard by those of the other (Dinh et al. 2017, section
    3.4). `parity`: of the places that stay."""

    def __init__(self, channels: int, width: int, num_classes: int, blocks: int, parity: int):
        super().__init__()
        self.parity = parity
        self.net = CouplingNet(channels, channels, width, num_classes, blocks)

    def _stays(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        return ((rows + columns) % 2 == self.parity).to(x.dtype)

    def _affine(self, kept: Tensor, moves: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, scale = self.net(kept, label).chunk(2, dim=1)
        return moves * shift, moves * F.logsigmoid(scale + _SHIFT)

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        stays = self._stays(x)
        shift, log_scale = self._affine(stays * x, 1 - stays, label)
        return (x + shift) * log_scale.exp(), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        stays = self._stays(y)
        shift, log_scale = self._affine(stays * y, 1 - stays, label)
        return y * (-log_scale).exp() - shift


class Squeeze(Invertible):
    """Two by two places become channels: (B, C, H, W) -> (B, 4C, H / 2, W / 2)."""

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        return F.pixel_shuffle(y, 2)


class Logit(Invertible):
    """Values in (-1, 1) onto the whole line: the logit of alpha + (1 - alpha) (x + 1) / 2 (Dinh et al. 2017, section
    4.1)."""

    def __init__(self, alpha: float):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        share = self.alpha / 2 + (1 - self.alpha) * (x + 1) / 2
        logdet = torch.full_like(x, (1 - self.alpha) / 2).log() - share.log() - (-share).log1p()
        return share.logit(), logdet.flatten(1).sum(1)

    def inverse(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        return 2 * (y.sigmoid() - self.alpha / 2) / (1 - self.alpha) - 1
