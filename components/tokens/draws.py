"""From logits to tokens: guidance, truncation, and draws that a key decides."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from components.config import Strict
from components.data.randomness import Draws

_LEAST = 1e-20
NO_LIMIT = 2**31  # more tokens than any vocabulary has


class DrawSettings(Strict):
    """How a token is drawn from logits. `top_k`: of the likeliest ones alone, 0 for all; `top_p`: of the fewest that
    have this much of the probability (Holtzman et al. 2020). `guidance_ramp`: the scale grows from 1 at the first
    token or step to its whole at the last, or is the same throughout (Tian et al. 2024 and Li et al. 2024 ramp it:
    early tokens bear little)."""

    temperature: float = Field(1.0, gt=0, le=5)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    guidance_scale: float = Field(1.0, ge=0, le=50)
    guidance_ramp: Literal["constant", "linear"] = "linear"

    def scale_at(self, place: int, count: int) -> float:
        """Of guidance at a token or step, of `count` from 0."""
        share = 1.0 if self.guidance_ramp == "constant" else (place + 1) / count
        return 1 + (self.guidance_scale - 1) * share

    @property
    def limits(self) -> tuple[int, float]:
        """`top_k` and `top_p` as numbers that nothing reaches where they are off."""
        return self.top_k or NO_LIMIT, self.top_p if self.top_p < 1 else math.inf


def guided(told: Tensor, untold: Tensor, scale: float | Tensor) -> Tensor:
    """Logits led away from those without the condition (Ho and Salimans 2022, on logits: Chang et al. 2023)."""
    return untold + scale * (told - untold)


def truncated(logits: Tensor, settings: DrawSettings) -> Tensor:
    """Logits (..., V) at the temperature, minus infinity where no token shall come from. Of equally likely tokens those
    with lower numbers come first."""
    logits = logits / settings.temperature
    top_k, top_p = settings.limits
    return logits if top_k >= logits.shape[-1] and top_p == math.inf else _limited(logits, top_k, top_p)


def _limited(logits: Tensor, top_k: int | Tensor, top_p: float | Tensor) -> Tensor:
    """By limits of all rows, or (B, 1) of each."""
    ordered, places = descending(logits)
    left_out = torch.arange(logits.shape[-1], device=logits.device) >= top_k
    probabilities = ordered.masked_fill(left_out, -torch.inf).softmax(-1)
    left_out = left_out | (probabilities.cumsum(-1) - probabilities >= top_p)  # what lies before has enough already
    return logits.masked_fill(torch.empty_like(left_out).scatter_(-1, places, left_out), -torch.inf)


def descending(logits: Tensor) -> tuple[Tensor, Tensor]:
    """A stable sort of logits (..., V) float32 along the last axis, and where each stood.

    NumPy sorts whole numbers by vector instructions, which torch does not on a CPU: in them a logit's bits, in the
    order of its value, stand before its place."""
    if logits.device.type != "cpu":
        return torch.sort(logits, dim=-1, descending=True, stable=True)
    bits = (logits + 0.0).view(torch.int32)  # of both zeros those of one
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    numbers = ((~rising).long() << 32).bitwise_or_(torch.arange(logits.shape[-1]))
    places = torch.from_numpy(np.sort(numbers.numpy(), axis=-1)).bitwise_and_(0xFFFFFFFF)
    return logits.gather(-1, places), places


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers in (0, 1); the largest of logits plus it is a draw from them."""
    return uniform.log().clamp_(max=-_LEAST).neg_().log_().neg_()


def drawn(logits: Tensor, noise: Tensor) -> Tensor:
    """Tokens (...) by truncated logits and Gumbel noise (..., V)."""
    return (logits + noise).argmax(-1)


class RowDraws(NamedTuple):
    """How each row of (B, V) logits is drawn from, rows of any settings beside each other. On the CPU, where it is
    decided without waiting for a device what is to be done at all, but for the keys.

    key:      (B,) int64 of Draws that the token's name was folded into, on the logits' device
    partner:  (B,) int64: so many rows on stands the row that guidance leads away from; 0 where it does not lead. A row
              that is led away from has the way back, below 0, and gets the token that is drawn there
    scale, temperature, top_k, top_p:  (B,) of DrawSettings, the last two as its `limits`
    """

    key: Tensor
    partner: Tensor
    scale: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    @staticmethod
    def constant(settings: DrawSettings, rows: int, is_guided: bool) -> dict[str, Tensor]:
        """What stays the same of the rows of a request from token to token; if guided, `rows` more are led from."""
        top_k, top_p = settings.limits
        values = {"temperature": settings.temperature, "top_k": top_k, "top_p": top_p}
        total, ways = (2 * rows, (rows, -rows)) if is_guided else (rows, (0,))
        alike = {name: torch.full((total,), value, device="cpu") for name, value in values.items()}
        return {"partner": torch.tensor(ways, device="cpu").repeat_interleave(rows), **alike}

    def tokens(self, logits: Tensor) -> Tensor:
        """(B,) int64; the token of a row is the same whatever rows are beside it."""
        device = logits.device

        def moved(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        if not self.partner.any():
            return self._drawn(logits / moved(self.temperature)[:, None], self.key, self.top_k, self.top_p)
        at, own = torch.arange(len(logits), device="cpu"), self.partner >= 0
        rows, places = at[own], (own.cumsum(0) - 1)[at + self.partner.clamp(max=0)]
        told, untold = logits[moved(rows)], logits[moved(rows + self.partner[own])]
        found = guided(told, untold, moved(self.scale[own])[:, None]) / moved(self.temperature[own])[:, None]
        return self._drawn(found, self.key[moved(rows)], self.top_k[own], self.top_p[own])[moved(places)]

    @staticmethod
    def _drawn(logits: Tensor, key: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
        """Tokens (B,) of logits (B, V) at their temperature, which are changed."""
        limited = ((top_k < logits.shape[1]) | (top_p < 1)).nonzero()[:, 0]
        if len(limited):
            which, *limits = (
                values.to(logits.device, non_blocking=True) for values in (limited, top_k[limited], top_p[limited])
            )
            logits.index_copy_(0, which, _limited(logits[which], *(limit[:, None] for limit in limits)))
        return drawn(logits, gumbel(Draws(key).uniforms(logits.shape[1])))
