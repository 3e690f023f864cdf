"""Quantisation of what is left, scale by scale (Lee et al. 2022; Tian et al. 2024, VAR, section 3.2): the coarsest grid
of codes says what it can of the latents, the next finer one what it left, and so on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.nets.autoencoder.codebook import Codebook
from components.shapes import pooled

KEPT = 0.5  # share of a grid that goes past its convolution, as published


class Scales(nn.Module):
    """Latents (B, C, s, s) -> the sum of what grids of codes say, of sides that end with s; all grids share a codebook.

    A grid is brought up to s, and a convolution of its own blends its cells. Tokens are (B, N) int64, N = sum of the
    squared sides, coarse grids first, each in row-major order; `size`, one beyond the codes, is a token that says
    nothing, so that the first grids alone are latents too."""

    def __init__(self, codebook: Codebook, sides: Sequence[int]):
        super().__init__()
        channels = codebook.codes.shape[1]
        self.codebook, self.sides, self.size = codebook, tuple(sides), codebook.size
        self.counts = tuple(side**2 for side in sides)  # of tokens
        self.blend = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in sides)

    def forward(self, latents: Tensor) -> Tensor:
        """The sum, in float32, with the latents' gradient; the convolutions have their own. A forward with gradients in
        training moves the codes by what each grid was asked for."""
        with torch.autocast(latents.device.type, enabled=False):
            tokens, asked = self._matched(latents)
            found = self.codes_of(tokens, latents.shape[2:])
            if self.training and torch.is_grad_enabled():
                self.codebook.follow(asked, tokens.flatten())
        return found + (latents - latents.detach())

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """The sum, without a graph."""
        return self.codes_of(self.tokens(latents), latents.shape[2:])

    def tokens(self, latents: Tensor) -> Tensor:
        """Numbers of the codes, (B, N) int64."""
        return self._matched(latents)[0]

    def codes_of(self, tokens: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The sum of tokens (B, N), (B, C, s, s) float32, or of another `size`."""
        return self._sums(tokens, size or (self.sides[-1],) * 2)[-1]

    def told(self, tokens: Tensor) -> Tensor:
        """What each token is drawn after: the sum of all coarser grids, averaged over its cell, (B, N, C); zeros for
        the coarsest."""
        sums = self._sums(tokens, (self.sides[-1],) * 2)[:-1]
        before = [torch.zeros_like(sums[0]) if sums else tokens.new_zeros(len(tokens), self._channels, 1, 1).float()]
        cells = zip([*before, *sums], self.sides, strict=True)
        return torch.cat([_averaged(one, side).flatten(2) for one, side in cells], dim=2).transpose(1, 2)

    def parts(self, tokens: Tensor) -> dict[str, Tensor]:
        """Of tokens (B, N) those of each grid, by the names that figures of them end in."""
        split = tokens.split(self.counts, dim=1)
        return {f"_{side}x{side}": part for side, part in zip(self.sides, split, strict=True)}

    def cells(self, mask: Tensor, sides: tuple[int, ...]) -> Tensor:
        """As of OnePerPlace, whatever `sides` tokens are stored in: of each grid's own cells."""
        return torch.cat([pooled(mask, (side, side)).flatten(1) > 0 for side in self.sides], dim=1)

    def commitment(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """The squared distance of latents to the sum that their tokens say, a latent; it pulls the latents alone."""
        with torch.no_grad():
            found = self.codes_of(tokens, latents.shape[2:])
        return (latents.float() - found).square().flatten(1).sum(1).mean()

    def fingerprint(self) -> str:
        """Of what the numbers of codes mean."""
        found = hashlib.sha256(repr(self.sides).encode())
        for value in self.state_dict().values():
            found.update(value.cpu().numpy().tobytes())
        return found.hexdigest()[:32]

    @torch.no_grad()
    def _matched(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (B, N), and what each was to say, (B * N, C) in their order."""
        with torch.autocast(latents.device.type, enabled=False):  # half precision takes wrong codes for the nearest
            rest, tokens, asked = latents.float(), [], []
            for number, side in enumerate(self.sides):
                low = _averaged(rest, side)
                chosen = self.codebook.tokens(low)
                rest = rest - self._said(chosen, number, latents.shape[2:])
                tokens.append(chosen.flatten(1))
                asked.append(low.flatten(2))
            places = torch.cat(asked, dim=2).transpose(1, 2)  # (B, N, C)
            return torch.cat(tokens, dim=1), places.flatten(0, 1)

    def _sums(self, tokens: Tensor, size: Sequence[int]) -> list[Tensor]:
        """What the first grid says, the first two together, and so on."""
        with torch.autocast(tokens.device.type, enabled=False):
            sums: list[Tensor] = []
            for number, (part, side) in enumerate(zip(tokens.split(self.counts, dim=1), self.sides, strict=True)):
                said = self._said(part.unflatten(1, (side, side)), number, size)
                sums.append(said if not sums else sums[-1] + said)
            return sums

    def _said(self, tokens: Tensor, number: int, size: Sequence[int]) -> Tensor:
        """What a grid (B, side, side) of codes adds to the latents."""
        codes = torch.cat([self.codebook.codes, self.codebook.codes.new_zeros(1, self._channels)])
        low = codes[tokens].movedim(-1, 1)
        wide = low if low.shape[2:] == tuple(size) else F.interpolate(low, tuple(size), mode="bicubic")
        blended = KEPT * wide + (1 - KEPT) * self.blend[number](wide)
        return torch.where((tokens < self.size).any(2).any(1)[:, None, None, None], blended, torch.zeros_like(blended))

    @property
    def _channels(self) -> int:
        return self.codebook.codes.shape[1]


def _averaged(x: Tensor, side: int) -> Tensor:
    """(B, C, s, s) -> (B, C, side, side), each cell the mean of what it covers."""
    return x if x.shape[2:] == (side, side) else F.adaptive_avg_pool2d(x, side)
