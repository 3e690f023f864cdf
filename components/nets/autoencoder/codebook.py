"""Vector quantisation with a codebook that follows the encoder by moving averages (van den Oord et al. 2017, appendix
A.1); codes that nothing is near to any more start again at latents of the batch (Dhariwal et al. 2020, section 3.1)."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from components.shapes import pooled


class OnePerPlace(nn.Module):
    """What codebooks share that give each place of the latents a code."""

    def parts(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens that figures tell apart: none."""
        return {}

    def cells(self, mask: Tensor, sides: tuple[int, ...]) -> Tensor:
        """Which tokens' cells hold any of a mask (B, 1, H, W), of latents of these sides: (B, N) booleans."""
        return pooled(mask, sides).flatten(1) > 0


class Codebook(OnePerPlace):
    """Latents (B, C, h, w) -> the nearest of `size` codes at each place.

    `decay` is the weight of the past in both averages; a code used less than `restart_below` times a batch, by its
    average, starts again. `normalised`: latents and codes have unit length, and their angle says which is nearest (Yu
    et al. 2022, section 3.2). Everything is a buffer: gradients go around (straight through)."""

    def __init__(self, size: int, channels: int, decay: float, restart_below: float, normalised: bool = False):
        super().__init__()
        self.size, self.decay, self.restart_below, self.normalised = size, decay, restart_below, normalised
        codes = self._scaled(torch.randn(size, channels))
        self.register_buffer("codes", codes)  # e_i
        self.register_buffer("sums", codes.clone())  # m_i
        self.register_buffer("counts", torch.ones(size))  # N_i

    def forward(self, latents: Tensor) -> Tensor:
        """The nearest codes, with the latents' gradient. A forward with gradients in training moves the codes."""
        if self.training and torch.is_grad_enabled():
            with torch.autocast(latents.device.type, enabled=False):
                places = self._places(latents)
                self.follow(places, self._chosen(places))
        latents = self._scaled(latents)
        return latents + (self.nearest(latents) - latents).detach()

    def nearest(self, latents: Tensor) -> Tensor:
        """The code nearest to the latent at each place."""
        return self.codes_of(self.tokens(latents))

    @torch.no_grad()
    def tokens(self, latents: Tensor) -> Tensor:
        """Numbers of the nearest codes, (B, h, w) int64."""
        with torch.autocast(latents.device.type, enabled=False):  # half precision takes wrong codes for the nearest
            return self._chosen(self._places(latents)).reshape(len(latents), *latents.shape[2:])

    def codes_of(self, tokens: Tensor) -> Tensor:
        """Codes (B, C, h, w) by their numbers (B, h, w)."""
        return self.codes[tokens].movedim(-1, 1)

    def commitment(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """The squared distance of latents to their codes, of these numbers (van den Oord et al. 2017, equation 3), a
        latent."""
        return (self._scaled(latents) - self.codes_of(tokens)).square().flatten(1).sum(1).mean()

    def fingerprint(self) -> str:
        """Of what the numbers of codes mean."""
        return hashlib.sha256(self.codes.cpu().numpy().tobytes()).hexdigest()[:32]

    def _scaled(self, values: Tensor) -> Tensor:
        return F.normalize(values, dim=1) if self.normalised else values

    def _places(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B*h*w, C) float32, without a graph."""
        return self._scaled(latents.detach().float()).movedim(1, -1).flatten(0, -2)

    def _chosen(self, places: Tensor) -> Tensor:
        return torch.cdist(places, self.codes).argmin(1)

    @torch.no_grad()
    def follow(self, places: Tensor, chosen: Tensor) -> None:
        """Moves the codes towards the places (N, C) for which they were `chosen`, (N,), over all workers."""
        picked = nn.functional.one_hot(chosen, len(self.codes)).to(places.dtype)  # (N, size)
        counts, sums = picked.sum(0), picked.T @ places
        # evenly spread over the batch, the same in every process
        fresh = places[torch.arange(len(self.codes), device=places.device) * len(places) // len(self.codes)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for part in (counts, sums):
                torch.distributed.all_reduce(part)
            torch.distributed.broadcast(fresh, 0)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.counts < self.restart_below
        self.counts[dead], self.sums[dead] = 1.0, fresh[dead]
        self.codes.copy_(self._scaled(self.sums / self.counts[:, None]))
