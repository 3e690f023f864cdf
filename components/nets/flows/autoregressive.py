"""TarFlow: a stack of autoregressive flows over patches, each a causal transformer, every second one from the last
patch to the first (Zhai et al. 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.blocks import embedded
from components.nets.flows.layers import standard_log_density
from components.nets.kept import Kept
from components.nets.rotary import GRID_BASE, grid_places
from components.nets.transformer import Transformer


class AutoregressiveFlow(nn.Module):
    """Affine in each token, by a scale and a shift that are read off the class and the tokens before it.

    Tokens are (B, T, D); `label` is (B,) int64, weights (B, num_classes) of points between classes, the one for no
    class counted, or None. It begins as the identity."""

    def __init__(self, sides: tuple[int, int], dim: int, width: int, layers: int, heads: int, num_classes: int):
        super().__init__()
        self.length, self.width = math.prod(sides), width
        self.enter = nn.Linear(dim, width)
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.first = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.transformer = Transformer(width, layers, heads, causal=True, base=GRID_BASE)
        self.leave = nn.Linear(width, 2 * dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        # a token's numbers are those of the place that it stands before
        self.register_buffer("places", grid_places(sides), persistent=False)

    def numbers(self, tokens: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-scales and shifts of all tokens, (B, T, D) each."""
        before = torch.cat([self.first.expand(len(tokens), 1, -1), self.enter(tokens[:, :-1])], dim=1)
        return self._numbers(before, self.places, label)

    def _numbers(self, before: Tensor, places: Tensor, label: Tensor | None, kept: Kept | None = None):
        if self.label is not None:
            before = before + embedded(self.label, label)[:, None]
        log_scale, shift = self.leave(self.transformer(before, places, kept=kept)).float().chunk(2, dim=2)
        return log_scale, shift

    def forward(self, tokens: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> latents (B, T, D), the log-determinant (B,)."""
        log_scale, shift = self.numbers(tokens, label)
        return (tokens - shift) * (-log_scale).exp(), -log_scale.flatten(1).sum(1)

    # -- one token at a time, kept between calls (components/sampling/state.py) ---------------------------------------

    def next_numbers(
        self, previous: Tensor, position: Tensor, label: Tensor | None, cache: Tensor, slot: Tensor
    ) -> Tensor:
        """The log-scale and the shift (B, 2D) of the tokens at `position` (B,), each with the token before it (B, D),
        which position 0 has none of."""
        entered = torch.where((position == 0)[:, None], self.first, self.enter(previous))
        log_scale, shift = self._numbers(
            entered[:, None], self.places[position][:, None], label, Kept(cache, slot, position)
        )
        return torch.cat([log_scale, shift], dim=2)[:, 0]


class TarFlow(nn.Module):
    """Rows (B, C, H, W) -> their log-density (B,) in nats, by `flows` autoregressive flows over patches."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        patch: int,
        width: int,
        flows: int,
        layers: int,
        heads: int,
        num_classes: int,
    ):
        super().__init__()
        channels, height, line = shape
        self.patch, self.sides = patch, (height // patch, line // patch)
        self.dim, self.length = channels * patch**2, math.prod(self.sides)
        self.flows = nn.ModuleList(
            AutoregressiveFlow(self.sides, self.dim, width, layers, heads, num_classes) for _ in range(flows)
        )

    def forward(self, rows: Tensor, label: Tensor | None = None) -> Tensor:
        latents, logdet = self.encode(rows, label)
        return (standard_log_density(latents) + logdet.double()).float()

    def encode(self, rows: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> latents (B, T, D) in the last flow's order, the log-determinant (B,)."""
        tokens, total = self.tokens(rows), rows.new_zeros(len(rows))
        for number, flow in enumerate(self.flows):
            tokens, logdet = flow(tokens.flip(1) if number else tokens, label)
            total = total + logdet
        return tokens, total

    def tokens(self, rows: Tensor) -> Tensor:
        """Patches in reading order, (B, T, D)."""
        return F.pixel_unshuffle(rows, self.patch).flatten(2).transpose(1, 2)

    def rows(self, tokens: Tensor) -> Tensor:
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, self.sides), self.patch)

    def denoised(self, rows: Tensor, std: float, label: Tensor | None = None) -> Tensor:
        """Rows less the noise of standard deviation `std` that the density was learnt with: Tweedie's formula (section
        2.4)."""
        with torch.inference_mode(False), torch.enable_grad():
            noisy = rows.clone().requires_grad_()
            labels = None if label is None else label.clone()
            (score,) = torch.autograd.grad(self(noisy, labels).sum(), noisy)
            return noisy.detach() + std**2 * score


class NextToken:
    """One flow of a TarFlow as a net that keeps rows between calls."""

    def __init__(self, flow: AutoregressiveFlow):
        self.flow = flow

    @property
    def row_bytes(self) -> int:
        return self.flow.transformer.row_bytes(self.flow.length)

    def allocate(self, rows: int) -> Tensor:
        return self.flow.transformer.allocate(rows, self.flow.length)

    def __call__(self, *, position, previous, cache, slot, label=None) -> Tensor:
        return self.flow.next_numbers(previous, position, label, cache, slot)
