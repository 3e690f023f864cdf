"""The likelihood of a diffusion model, by its probability-flow differential equation (Song et al. 2021, section 4.3;
Chen et al. 2018)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from components.diffusion.schedules import SIGMA_MIN

NUM_LEVELS = 32


def levels(largest: float) -> list[float]:
    """NUM_LEVELS noise levels from SIGMA_MIN up, equal steps of their logarithm: the density is that of data under so
    little noise."""
    ends = math.log(SIGMA_MIN), math.log(largest)
    return torch.linspace(*ends, NUM_LEVELS, dtype=torch.float64).exp().tolist()


def log_density(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, probe: Tensor, sigmas: Sequence[float]
) -> Tensor:
    """Log-densities (B,) float64 in nats of x (B, ...) at the least level, of data of about unit variance.

    `denoise(x, sigma)` -> x0; `probe`: (B, ...) signs of Hutchinson's estimate of the trace, the same at all levels;
    `sigmas`: increasing. dx / d log sigma = x - x0 is integrated upwards by Heun's method, as
    y = x / sqrt(1 + sigma^2), which stays of one size: in x the same steps err fifty times as much. The log-density
    changes by minus the trace of the Jacobian. What arrives at the largest level is taken for noise of it on data of
    unit variance."""
    y, change = x.double() / math.sqrt(1 + sigmas[0] ** 2), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    slope, growth = _slope(denoise, y, probe, sigmas[0])
    for low, high in itertools.pairwise(sigmas):
        step = math.log(high / low)
        guess, _ = _slope(denoise, y + step * slope, probe, high)
        y = y + step / 2 * (slope + guess)
        slope, next_growth = _slope(denoise, y, probe, high)
        change = change + step / 2 * (growth + next_growth)
        growth = next_growth
    variance = sigmas[-1] ** 2 + 1
    normal = -0.5 * (y.square() + math.log(2 * math.pi * variance)).flatten(1).sum(1)
    return normal + change


def _slope(denoise: Callable[[Tensor, float], Tensor], y: Tensor, probe: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """dy / d log sigma (B, ...), and the estimate (B,) of the trace of d(x - x0) / dx."""
    root = math.sqrt(1 + sigma**2)
    with torch.inference_mode(False), torch.enable_grad():
        asked = (root * y).float().clone().requires_grad_()
        x0 = denoise(asked, sigma)
        (product,) = torch.autograd.grad((x0 * probe.clone()).sum(), asked)
    trace = (product.double() * probe.double()).flatten(1).sum(1)
    return y / root**2 - x0.detach().double() / root, y[0].numel() - trace
