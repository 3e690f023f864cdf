"""Vector quantisation with a codebook that follows the encoder by moving averages (van den Oord et al. 2017, appendix
A.1); codes that nothing is near to any more start again at latents of the batch (Dhariwal et al. 2020, section 3.1)."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn


class Codebook(nn.Module):
    """Latents (B, C, h, w) -> the nearest of `size` codes at each place.

    `decay` is the weight of the past in both averages; a code used less than `restart_below` times a batch, by its
    average, starts again. Everything is a buffer: gradients go around (straight through)."""

    def __init__(self, size: int, channels: int, decay: float, restart_below: float):
        super().__init__()
        self.decay, self.restart_below = decay, restart_below
        codes = torch.randn(size, channels)
        self.register_buffer("codes", codes)  # e_i
        self.register_buffer("sums", codes.clone())  # m_i
        self.register_buffer("counts", torch.ones(size))  # N_i

    def forward(self, latents: Tensor) -> Tensor:
        """The nearest codes, with the latents' gradient. A forward with gradients in training moves the codes."""
        if self.training and torch.is_grad_enabled():
            with torch.autocast(latents.device.type, enabled=False):
                places = _places(latents)
                self._follow(places, self._chosen(places))
        return latents + (self.nearest(latents) - latents).detach()

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """The code nearest to the latent at each place."""
        found = self.codes[self._chosen(_places(latents))]
        return found.reshape(len(latents), *latents.shape[2:], -1).movedim(-1, 1)

    def _chosen(self, places: Tensor) -> Tensor:
        return torch.cdist(places, self.codes).argmin(1)

    @torch.no_grad()
    def _follow(self, places: Tensor, chosen: Tensor) -> None:
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
        self.codes.copy_(self.sums / self.counts[:, None])


def _places(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B*h*w, C) float32, without a graph."""
    return latents.detach().float().movedim(1, -1).flatten(0, -2)
