"""What a diffusion net predicts, as the four coefficients of Karras et al. 2022, equation 7.

    D(x, sigma) = c_skip * x + c_out * F(c_in * x, level)        with x = x0 + sigma * noise

The training target of F follows: F* = (x0 - c_skip * x) / c_out, which is the noise for `epsilon`, the velocity for
`v` and `flow`, the clean image for `x0`. An unweighted squared error on F is each method's published loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """Each of sigma's shape; of one noise level they may be numbers."""

    c_skip: Tensor | float
    c_out: Tensor | float
    c_in: Tensor | float


def epsilon(sigma: Tensor) -> Coefficients:
    """Ho et al. 2020: predict the noise from the variance-preserving x."""
    return Coefficients(torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt())


def x0(sigma: Tensor) -> Coefficients:
    """Predict the clean image from the variance-preserving x."""
    return Coefficients(torch.zeros_like(sigma), torch.ones_like(sigma), (1 + sigma**2).rsqrt())


def v(sigma: Tensor) -> Coefficients:
    """Salimans and Ho 2022, appendix D: predict alpha * noise - sigma_vp * x0."""
    return Coefficients(1 / (1 + sigma**2), -sigma * (1 + sigma**2).rsqrt(), (1 + sigma**2).rsqrt())


def flow(sigma: Tensor) -> Coefficients:
    """Lipman et al. 2023: predict noise - x0 from x_t = (1 - t) x0 + t noise, t = sigma / (1 + sigma)."""
    return Coefficients(1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma))


def edm(sigma: Tensor, sigma_data: float = 1.0) -> Coefficients:
    """Karras et al. 2022, Table 1. Latents are normalised to unit variance, hence sigma_data = 1."""
    total = sigma**2 + sigma_data**2
    return Coefficients(sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt())


OBJECTIVES: dict[str, Callable[[Tensor], Coefficients]] = {
    "epsilon": epsilon,
    "x0": x0,
    "v": v,
    "flow": flow,
    "edm": edm,
}


def target(clean: Tensor, noise: Tensor, sigma: Tensor, objective: Callable[[Tensor], Coefficients]) -> Tensor:
    """F*, what the net should answer. `sigma` broadcasts against the images."""
    # in float64: 1 - c_skip loses all digits at small sigma otherwise
    exact = sigma.double()
    c_skip, c_out, _ = objective(exact)
    of_clean, of_noise = (1 - c_skip) / c_out, -c_skip * exact / c_out
    return of_clean.to(clean.dtype) * clean + of_noise.to(clean.dtype) * noise
