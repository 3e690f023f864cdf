"""Solvers of the reverse process, as coroutines: each yields (x, sigma) and receives the denoised x0.

A solver is a pure function of the start, the noise levels and the noise it is given. It does not know where the
denoised images come from, so the same code runs alone, in batches, and interleaved with others in a server.

    x:       (B, C, ...), already at sigmas[0]
    sigmas:  decreasing, the last is 0 (the variance-exploding frame, x = x0 + sigma * noise)
    noise:   noise(i) -> fresh standard normal like x for step i; deterministic solvers never call it
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

Solver = Generator[tuple[Tensor, float], Tensor, Tensor]
Noise = Callable[[int], Tensor]


def ddim(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float = 0.0) -> Solver:
    """Song et al. 2021a, equation 12. Also Euler's method on the probability-flow ODE when eta is 0."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        fresh = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)  # equation 16 in this frame
        kept = math.sqrt(sigma_next**2 - fresh**2)
        x = denoised + (kept / sigma) * (x - denoised)
        if fresh > 0:
            x = x + fresh * noise(step)
    return x


ddpm = functools.partial(ddim, eta=1.0)  # Ho et al. 2020, equation 7: ancestral sampling is DDIM with eta 1

# Euler's method to sigma_down, then noise of sigma_up (k-diffusion's sample_euler_ancestral): here the same step
euler_ancestral = ddpm


def euler(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Solver:
    """First order on the probability-flow ODE (Karras et al. 2022, equation 1)."""
    return (yield from ddim(x, sigmas, noise))


def renoised(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Solver:
    """Fresh noise on each estimate: Song et al. 2023, Algorithm 1. For estimates that lie on the data, as those of a
    consistency model do; a mean of the data would stay one."""
    for step, sigma_next in enumerate(sigmas[1:]):
        denoised = yield x, sigmas[step]
        x = denoised if sigma_next == 0 else denoised + sigma_next * noise(step)
    return x


class Path(NamedTuple):
    """The variable that a solver steps in: z = x / (1 + fade * sigma) over time sigma / (1 + fade * sigma), where z is
    the images times 1 - fade * time and the noise times time, added."""

    fade: float

    def z(self, x: Tensor, sigma: float) -> Tensor:
        return x / (1 + self.fade * sigma)

    def x(self, z: Tensor, sigma: float) -> Tensor:
        return z * (1 + self.fade * sigma)

    def step(self, sigma: float, sigma_next: float) -> float:
        """The difference of their times."""
        return (sigma_next - sigma) / ((1 + self.fade * sigma) * (1 + self.fade * sigma_next))

    def slope(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """dz / dtime, for the estimate `denoised` of the images."""
        return (x - denoised) / sigma - self.fade * denoised


# Lipman et al. 2023: the time of the flow ends at 1 whatever the noise, so the slopes stay smooth where sigma has no
# bound. On every schedule here it was at least as exact as sigma, and as steps in log sigma (docs/RESULTS.md).
FLOW = Path(1.0)
SIGMA = Path(0.0)  # Karras et al. 2022: time is sigma itself


def heun(x: Tensor, sigmas: Sequence[float], noise: Noise, path: Path = FLOW) -> Solver:
    """Second order: Karras et al. 2022, Algorithm 1, along `path`. Two evaluations a step, one at the last."""
    for sigma, sigma_next in pairwise(sigmas):
        z, step = path.z(x, sigma), path.step(sigma, sigma_next)
        slope = path.slope(x, (yield x, sigma), sigma)
        x = path.x(z + step * slope, sigma_next)
        if sigma_next > 0:
            slope_ahead = path.slope(x, (yield x, sigma_next), sigma_next)
            x = path.x(z + step * (slope + slope_ahead) / 2, sigma_next)
    return x


# Weights of the slopes, newest first: the Adams-Bashforth methods of order 1 to 4
ADAMS_BASHFORTH = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(x: Tensor, sigmas: Sequence[float], noise: Noise, path: Path = FLOW) -> Solver:
    """Pseudo linear multistep (Liu et al. 2022, section 3) along `path`, started by one step of Heun's method as in
    Rombach et al. 2022's code. One evaluation a step and one more. The weights suppose equal steps; where these change
    little by little it is of second order."""
    slopes: list[Tensor] = []
    for sigma, sigma_next in pairwise(sigmas):
        z, step = path.z(x, sigma), path.step(sigma, sigma_next)
        slopes = [path.slope(x, (yield x, sigma), sigma), *slopes[:3]]
        slope = sum(weight * slope for weight, slope in zip(ADAMS_BASHFORTH[len(slopes) - 1], slopes, strict=True))
        if len(slopes) == 1 and sigma_next > 0:
            ahead = path.x(z + step * slope, sigma_next)
            slope = (slope + path.slope(ahead, (yield ahead, sigma_next), sigma_next)) / 2
        x = path.x(z + step * slope, sigma_next)
    return x


def dpmpp_2m(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float = 0.0) -> Solver:
    """DPM-Solver++(2M), second-order multistep: Lu et al. 2022b, Algorithm 2; with eta 1 its form for the diffusion
    SDE, SDE-DPM-Solver++(2M), section 5. One evaluation a step."""
    previous: Tensor | None = None
    h_previous = math.inf
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = yield x, sigma
        if sigma_next == 0:  # the last step is first order, whose limit is the denoised image itself
            return denoised
        h = math.log(sigma / sigma_next)
        estimate = denoised
        if previous is not None:
            estimate = denoised + (h / (2 * h_previous)) * (denoised - previous)
        x = (sigma_next / sigma) * math.exp(-eta * h) * x - math.expm1(-(1 + eta) * h) * estimate
        if eta > 0:
            x = x + sigma_next * math.sqrt(-math.expm1(-2 * eta * h)) * noise(step)
        previous, h_previous = denoised, h
    return x


dpmpp_2m_sde = functools.partial(dpmpp_2m, eta=1.0)


def unipc(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Solver:
    """UniPC-2 on data prediction with B(h) = e^h - 1: Zhao et al. 2023, section 3. Each evaluation also corrects
    the step that led to it, so there is one a step."""
    known: list[Tensor] = []  # denoised, newest first
    hs: list[float] = []  # the steps' lengths in log sigma, likewise
    start, sigma_before = x, math.nan
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield x, sigma
        if sigma_next == 0:  # as in dpmpp_2m
            return denoised
        if hs:
            x = (sigma / sigma_before) * start - math.expm1(-hs[0]) * _unic(denoised, known, hs)
        known, hs = [denoised, *known[:1]], [math.log(sigma / sigma_next), *hs[:1]]
        estimate = denoised  # the predictor, UniP-2, is dpmpp_2m's step
        if len(hs) == 2:
            estimate = denoised + (hs[0] / (2 * hs[1])) * (denoised - known[1])
        start, sigma_before = x, sigma
        x = (sigma_next / sigma) * x - math.expm1(-hs[0]) * estimate
    return x


def _unic(arrived: Tensor, known: list[Tensor], hs: list[float]) -> Tensor:
    """The corrector's estimate for a step from known[0] to `arrived`: UniC (Zhao et al. 2023, Theorem 3.1), the linear
    system for its weights solved in closed form."""
    if len(hs) == 1:
        return (known[0] + arrived) / 2
    h, ratio = hs[0], -hs[1] / hs[0]
    growth = math.expm1(-h)
    b1 = (growth / -h - 1) / growth
    b2 = 2 * ((growth / -h - 1) / -h - 0.5) / growth
    rho = (b1 - b2) / (1 - ratio)
    return known[0] + rho * (known[1] - known[0]) / ratio + (b1 - rho) * (arrived - known[0])


SOLVERS: dict[str, Callable[[Tensor, Sequence[float], Noise], Solver]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "euler_ancestral": euler_ancestral,
    "plms": plms,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}
