"""From logits to tokens: guidance, truncation, and draws that a key decides."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from components.config import Strict

_LEAST = 1e-20


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


def guided(told: Tensor, untold: Tensor, scale: float) -> Tensor:
    """Logits led away from those without the condition (Ho and Salimans 2022, on logits: Chang et al. 2023)."""
    return untold + scale * (told - untold)


def truncated(logits: Tensor, settings: DrawSettings) -> Tensor:
    """Logits (..., V) at the temperature, minus infinity where no token shall come from. Of equally likely tokens those
    with lower numbers come first."""
    logits = logits / settings.temperature
    if settings.top_k in (0, logits.shape[-1]) and settings.top_p == 1:
        return logits
    ordered, places = torch.sort(logits, dim=-1, descending=True, stable=True)
    left_out = torch.zeros_like(ordered, dtype=torch.bool)
    if settings.top_k:
        left_out[..., settings.top_k :] = True
    if settings.top_p < 1:
        probabilities = ordered.masked_fill(left_out, -torch.inf).softmax(-1)
        left_out |= probabilities.cumsum(-1) - probabilities >= settings.top_p  # what lies before has enough already
    return logits.masked_fill(left_out.gather(-1, places.argsort(-1)), -torch.inf)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers in (0, 1); the largest of logits plus it is a draw from them."""
    return -torch.log(-torch.log(uniform).clamp(max=-_LEAST))


def drawn(logits: Tensor, noise: Tensor) -> Tensor:
    """Tokens (...) by truncated logits and Gumbel noise (..., V)."""
    return (logits + noise).argmax(-1)
