"""The autoencoder of films: that of images (kl.py) on each frame, with convolutions over time between its parts that
see no later frame (causal 3-D autoencoders: Yu et al. 2024, MAGVIT-v2, section 3.2).

Frames go through in chunks, the first alone and then `factor` at a time, and layers over time keep their last inputs
from one chunk to the next. So a film's prefix takes the very same steps as the film: its latents are a prefix of the
film's, to the bit, and likewise back. Norms are each frame's own. Here time comes second, (B, T, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.autoencoder.kl import Decoder, Encoder, Reconstruction, spread_of
from components.nets.blocks import group_norm, norm_groups

Past = dict[nn.Module, Tensor]  # what layers keep of the chunks before; empty before the first


class CausalConv3d(nn.Module):
    """A 3x3x3 convolution of frames that sees the two before each, zeros before the first; of zero weights at first, so
    that a layer with a residual begins as none. `stride` over time: 2 sees the pairs after the first frame, each with
    the frame before it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        batch, _, *frame = x.shape
        x = torch.cat([past[self] if self in past else x.new_zeros(batch, 2, *frame), x], 1)
        past[self] = x[:, x.shape[1] - 3 + self.stride :]
        y = F.conv3d(x.movedim(1, 2), self.weight, self.bias, (self.stride, 1, 1), padding=(0, 1, 1))
        return y.movedim(2, 1)


class TimeBlock(nn.Module):
    """A normalised convolution over time with a residual."""

    recomputable = True  # cheap beside what its activations weigh (training.recompute)

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = group_norm(channels, groups, 1e-6)
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return x + self.conv(normalised(self.norm, x), past)


class TimeDown(nn.Module):
    """Halves the frames after the first: of each pair the second, and what both say."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = group_norm(channels, groups, 1e-6)
        self.conv = CausalConv3d(channels, channels, stride=2)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        kept = x if self.conv not in past else x[:, 1::2]
        return kept + self.conv(normalised(self.norm, x), past)


class TimeUp(nn.Module):
    """Doubles the frames after the first: each twice, and how they differ."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = group_norm(channels, groups, 1e-6)
        self.conv = CausalConv3d(channels, 2 * channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        is_first = self.conv not in past
        change = self.conv(normalised(self.norm, x), past).unflatten(2, (2, -1))
        doubled = (x[:, :, None] + change).flatten(1, 2)
        return doubled[:, 1:] if is_first else doubled


def on_frames(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A net of images on each frame of (B, T, C, H, W)."""
    return net(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    return F.silu(on_frames(norm, x))


class CausalEncoder(Encoder):
    """Chunks of frames (B, T, C, H, W) -> chunks of moments (B, T', 2 * latent_channels, H / f, W / f)."""

    def __init__(
        self, channels: int, latent_channels: int, widths: Sequence[int], layers: int, groups: int, halvings: int
    ):
        super().__init__(channels, latent_channels, widths, layers, groups)
        self.time_blocks = nn.ModuleList(TimeBlock(width, groups) for width in widths)
        self.time_downs = nn.ModuleList(TimeDown(widths[-1], groups) for _ in range(halvings))

    def forward(self, x: Tensor, past: Past) -> Tensor:  # type: ignore[override]
        x = on_frames(self.conv_in, x)
        for block, time in zip(self.down_blocks, self.time_blocks, strict=True):
            x = time(on_frames(block, x), past)
        for halve in self.time_downs:
            x = halve(x, past)
        x = on_frames(self.mid_block, x)
        return on_frames(self.conv_out, normalised(self.conv_norm_out, x))


class CausalDecoder(Decoder):
    """Chunks of latents (B, T', latent_channels, h, w) -> chunks of frames (B, T, C, h * f, w * f)."""

    def __init__(
        self, channels: int, latent_channels: int, widths: Sequence[int], layers: int, groups: int, halvings: int
    ):
        super().__init__(channels, latent_channels, widths, layers, groups)
        self.time_ups = nn.ModuleList(TimeUp(widths[-1], groups) for _ in range(halvings))
        befores = [widths[-1], *reversed(widths)][: len(widths)]
        self.time_blocks = nn.ModuleList(TimeBlock(width, groups) for width in befores)

    def forward(self, z: Tensor, past: Past) -> Tensor:  # type: ignore[override]
        x = on_frames(self.mid_block, on_frames(self.conv_in, z))
        for double in self.time_ups:
            x = double(x, past)
        for time, block in zip(self.time_blocks, self.up_blocks, strict=True):
            x = on_frames(block, time(x, past))
        return on_frames(self.conv_out, normalised(self.conv_norm_out, x))


class CausalAutoencoder(nn.Module):
    """Films (B, C, 1 + factor * k, H, W) and latents (B, latent_channels, 1 + k, H / f, W / f), f being
    2 ** (len(widths) - 1) and factor 2 ** halvings. Weights of an AutoencoderKL of the same layout fit by name."""

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        widths: Sequence[int],
        layers: int,
        halvings: int = 2,
        groups: int | None = None,
    ):
        super().__init__()
        groups = groups or norm_groups(widths)
        self.factor = 2**halvings
        self.encoder = CausalEncoder(channels, latent_channels, widths, layers, groups, halvings)
        self.decoder = CausalDecoder(channels, latent_channels, widths, layers, groups, halvings)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior."""
        moments = self._in_chunks(
            lambda x, past: on_frames(self.quant_conv, self.encoder(x, past)), videos, self.factor
        )
        mean, logvar = moments.chunk(2, dim=1)
        return mean, spread_of(logvar)

    def decode(self, latents: Tensor) -> Tensor:
        return self._in_chunks(lambda z, past: self.decoder(on_frames(self.post_quant_conv, z), past), latents, 1)

    def forward(self, videos: Tensor, noise: Tensor) -> Reconstruction:
        """Reparameterised reconstruction (Kingma and Welling 2014), both halves in one call."""
        mean, std = self.encode(videos)
        latents = mean + std * noise
        return Reconstruction(self.decode(latents), mean, std, latents)

    def inflate(self, image: Mapping[str, Tensor]) -> None:
        """Takes the weights of an autoencoder of images: each frame is then treated as it would treat it, and of the
        frames that share a latent the last is kept. Raises ValueError of another layout."""
        own = self.state_dict()
        lacking = [name for name in own if ".time_" not in name and name not in image]
        unfit = [name for name in image if name not in own or own[name].shape != image[name].shape]
        if lacking or unfit:
            differs = (lacking + unfit)[0]
            raise ValueError(f"expected the same channels, latent_channels, widths and layers; {differs} differs")
        self.load_state_dict({**own, **image})

    @staticmethod
    def _in_chunks(step: Callable[[Tensor, Past], Tensor], rows: Tensor, size: int) -> Tensor:
        """Rows (B, C, T, H, W) through a chunk at a time: the first frame alone, then `size` of them."""
        past: Past = {}
        return torch.cat([step(chunk, past) for chunk in _chunks(rows.movedim(2, 1), size)], dim=1).movedim(1, 2)


def _chunks(x: Tensor, size: int) -> Iterator[Tensor]:
    assert x.shape[1] % size == 1 % size, f"{x.shape[1]} frames are not one and a multiple of {size}"
    yield x[:, :1]
    for start in range(1, x.shape[1], size):
        yield x[:, start : start + size]
