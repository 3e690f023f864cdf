"""Building blocks of the latent-diffusion networks.

Submodule names follow the standard architecture's published weight layout (Rombach et al. 2022, as stored by
diffusers), so that weights map one to one without a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm_groups(widths: Sequence[int], least: int = 4, most: int = 32) -> int:
    """Number of groups for the norms of a net: the most, up to 32 (Wu and He 2018), that divide all of its widths and
    leave a group `least` channels. A group of one channel would take away what an embedding adds to that channel."""
    largest = max(1, min(most, min(widths) // least))
    return max(groups for groups in range(1, largest + 1) if math.gcd(*widths) % groups == 0)


def group_norm(channels: int, groups: int, eps: float) -> nn.GroupNorm:
    """GroupNorm of as many groups, up to `groups`, as divide `channels`."""
    return nn.GroupNorm(max(count for count in range(1, groups + 1) if channels % count == 0), channels, eps=eps)


def sinusoidal_embedding(level: Tensor, width: int, max_period: float = 10_000) -> Tensor:
    """(B,) noise levels -> (B, width), cosines before sines (Ho et al. 2020; Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=level.device) / half)
    angles = level.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """(B, in) sinusoidal embedding -> (B, out)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock2D(nn.Module):
    """Two normalised convolutions with a residual; `temb` shifts between them where the net is conditioned."""

    recomputable = True  # cheap beside what its activations weigh (training.recompute)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int | None = None,
        eps: float = 1e-6,
        groups: int | None = None,
    ):
        super().__init__()
        groups = groups or norm_groups((in_channels, out_channels))
        self.norm1 = group_norm(in_channels, groups, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels) if temb_channels else None
        self.norm2 = group_norm(out_channels, groups, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D(nn.Module):
    """Halves height and width. The autoencoder pads on the right and below only, the U-Net on all sides."""

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample2D(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Attention(nn.Module):
    """Multi-head attention of (B, N, C) over a context (B, M, D), or over itself."""

    def __init__(self, channels: int, heads: int, context_dim: int | None = None, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`mask`: as of dot_product_attention."""
        context = x if context is None else context
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N or M, C / heads)
            for projected in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def of_one(self, token: Tensor) -> Tensor:
        """What every query gets from a context of one token (B, 1, D): (B, 1, C), whatever the query. The softmax over
        one is 1, so that queries and keys neither matter nor learn; their gradient is the zero that it would be."""
        return with_zero_gradient(self.to_out[0](self.to_v(token)), self.to_q.weight, self.to_k.weight)


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (B, heads, N or M, d). `mask`: boolean, true where a query sees a key; `causal`:
    query i sees the keys up to i."""
    if q.device.type == "cpu":
        # the backward of torch's bfloat16 kernel is ten times slower there than that of its float32 kernel
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, 0.0, causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal)


class _WithZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, *idle: Tensor) -> Tensor:
        ctx.save_for_backward(*idle)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def with_zero_gradient(x: Tensor, *idle: Tensor) -> Tensor:
    """x, with a gradient of zero for each parameter in `idle`: data parallelism waits for one of every parameter."""
    if not torch.is_grad_enabled():
        return x
    return _WithZeroGradient.apply(x, *idle)


class SpatialAttention(Attention):
    """Single-head self-attention over the places of a feature map, with its own norm and residual."""

    def __init__(self, channels: int, groups: int | None = None):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = group_norm(channels, groups or norm_groups((channels,)), eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        return x + super().forward(tokens).transpose(1, 2).reshape(x.shape)


class GEGLU(nn.Module):
    """Gated linear unit with GELU (Shazeer 2020)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        # the identity holds the place of the layout's dropout, so that weight names agree
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each normalised first and residual."""

    def __init__(self, channels: int, heads: int, context_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        if context.shape[1] == 1:
            x = x + with_zero_gradient(self.attn2.of_one(context), *self.norm2.parameters())
        else:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks over the places of a feature map (Rombach et al. 2022, section 3.3).

    `linear`: the projections around them are linear layers and not 1x1 convolutions, as Stable Diffusion has them from
    its second version on; only the shape of their weights differs."""

    recomputable = True

    def __init__(
        self,
        channels: int,
        heads: int,
        context_dim: int,
        depth: int = 1,
        linear: bool = False,
        groups: int | None = None,
    ):
        super().__init__()
        self.norm = group_norm(channels, groups or norm_groups((channels,)), eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, context_dim) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.linear = linear

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.norm(x)
        tokens = self.proj_in(_tokens(tokens)) if self.linear else _tokens(self.proj_in(tokens))  # (B, H*W, C)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        if self.linear:
            return x + self.proj_out(tokens).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


def embedded(embedding: nn.Embedding, label: Tensor) -> Tensor:
    """The embedding of classes (B,) int64, or of points between them, (B, num_classes) weights."""
    return label @ embedding.weight if label.is_floating_point() else embedding(label)


def class_weights(label: Tensor, num_classes: int) -> Tensor:
    """Classes (B,) int64, or points between them, (B, num_classes) weights, as such weights."""
    return label if label.is_floating_point() else F.one_hot(label, num_classes).float()
