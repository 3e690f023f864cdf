"""The residual generator and discriminator of SAGAN (Zhang et al. 2019) and BigGAN (Brock et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import class_weights, embedded
from components.nets.gan.layers import ConditionalBatchNorm, SelfAttention, doublings

MOST_WIDTHS = 8  # channels stop doubling at this multiple of `width`


def channels_at(size: int, width: int) -> list[int]:
    """Channels at 4x4, 8x8, ... up to the image: doubling from it."""
    stages = doublings(size) + 1
    return [width * min(MOST_WIDTHS, 2**stage) for stage in reversed(range(stages))]


class UpBlock(nn.Module):
    """Twice the side (Brock et al. 2019, figure 15b)."""

    def __init__(self, before: int, after: int, condition_dim: int):
        super().__init__()
        self.norm1 = ConditionalBatchNorm(before, condition_dim)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(after, condition_dim)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        # a 1x1 convolution and the enlargement by copies commute; this order costs a quarter
        skipped = F.interpolate(self.skip(x), scale_factor=2)
        x = F.interpolate(F.relu(self.norm1(x, condition)), scale_factor=2)
        x = self.conv1(x)
        return skipped + self.conv2(F.relu(self.norm2(x, condition)))


class DownBlock(nn.Module):
    """Half the side (figure 15c). The first block sees the image itself, unrectified."""

    def __init__(self, before: int, after: int, is_first: bool):
        super().__init__()
        self.is_first = is_first
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = self.skip(F.avg_pool2d(x, 2))
        x = self.conv1(x if self.is_first else F.relu(x))
        return skipped + F.avg_pool2d(self.conv2(F.relu(x)), 2)


class Generator(nn.Module):
    """z (B, latent_dim) and label (B,) -> images (B, C, size, size) in [-1, 1].

    Every norm is conditioned. SAGAN: on the one-hot class. BigGAN (`embedding_dim`): on an embedding that all norms
    share, and on a part of z of its own for each block (`split_latent`; Brock et al. 2019, appendix B).
    """

    def __init__(
        self,
        channels: int,
        size: int,
        latent_dim: int,
        width: int,
        num_classes: int,
        *,
        attention_at: int | None,  # the side of the maps that attend
        embedding_dim: int | None = None,
        split_latent: bool = False,
    ):
        super().__init__()
        widths = channels_at(size, width)
        blocks = len(widths) - 1
        self.num_classes = num_classes
        self.parts = part_sizes(latent_dim, blocks + 1) if split_latent else [latent_dim] + [0] * blocks
        self.embedding = nn.Embedding(num_classes, embedding_dim) if embedding_dim and num_classes else None
        class_dim = (embedding_dim or num_classes) if num_classes else 0
        self.linear = nn.Linear(self.parts[0], widths[0] * 16)
        self.blocks = nn.ModuleList(
            [UpBlock(widths[k], widths[k + 1], class_dim + self.parts[k + 1]) for k in range(blocks)]
        )
        self.attention = nn.ModuleDict(
            {str(k): SelfAttention(widths[k + 1]) for k in range(blocks) if 8 * 2**k == attention_at}
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.apply(orthogonal)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        first, *others = z.split(self.parts, dim=1)
        class_condition = self.class_condition(label)
        x = self.linear(first).unflatten(1, (-1, 4, 4))
        for k, block in enumerate(self.blocks):
            x = block(x, torch.cat([*class_condition, others[k]], dim=1))
            x = self.attention[str(k)](x) if str(k) in self.attention else x
        return torch.tanh(self.to_image(F.relu(self.norm(x))))

    def class_condition(self, label: Tensor | None) -> list[Tensor]:
        """The class's part of each norm's condition."""
        if not self.num_classes:
            return []
        if self.embedding is not None:
            return [embedded(self.embedding, label)]
        return [class_weights(label, self.num_classes).to(self.to_image.bias)]


def part_sizes(total: int, parts: int) -> list[int]:
    """As equal as whole numbers allow; the larger first."""
    return [total // parts + (place < total % parts) for place in range(parts)]


class Trunk(nn.Module):
    """Images (B, C, size, size) -> maps (B, channels, 4, 4)."""

    def __init__(self, channels: int, size: int, width: int, attention_at: int | None):
        super().__init__()
        widths = [*reversed(channels_at(size, width))][1:]
        sides = [size // 2 ** (k + 1) for k in range(len(widths))]
        before = [channels, *widths]
        self.blocks = nn.Sequential()
        for k, after in enumerate(widths):
            self.blocks.append(DownBlock(before[k], after, is_first=k == 0))
            if sides[k] == attention_at:
                self.blocks.append(SelfAttention(after))
        self.channels = widths[-1]
        self.apply(orthogonal)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images)


class Pooled(nn.Module):
    """A last residual block at 4x4, rectified, summed over places: features (B, dim)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.skip = nn.Conv2d(channels, dim, 1)
        self.dim = dim
        self.apply(orthogonal)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.conv2(F.relu(self.conv1(F.relu(maps))))
        return F.relu(self.skip(maps) + inner).sum((2, 3))


def orthogonal(module: nn.Module) -> None:
    """Saxe et al. 2014, as Brock et al. 2019, section 3."""
    if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
        nn.init.orthogonal_(module.weight)
