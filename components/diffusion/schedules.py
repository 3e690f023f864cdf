"""Noise schedules: how a time in [0, 1] becomes a noise level sigma, and which levels a solver visits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.config import Strict

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # Karras et al. 2022, Table 1
NUM_TRAIN_TIMESTEPS = 1000  # Ho et al. 2020; also the unit in which nets are told the noise level


class ScheduleConfig(Strict):
    """`flow`: Lipman et al. 2023; `linear`: Ho et al. 2020; `scaled_linear`: Rombach et al. 2022; `cosine`: Nichol and
    Dhariwal 2021."""

    name: Literal["flow", "linear", "scaled_linear", "cosine"] = "flow"
    shift: float = Field(1.0, gt=0)  # flow only: Esser et al. 2024, section 5.3.2; above 1 means more noise
    zero_terminal_snr: bool = False  # not for flow, which ends in noise anyway: Lin et al. 2024, section 3.1
    # which times equal steps visit (Lin et al. 2024, Table 2): the noisiest and not 0, both, 0 and not the noisiest, or
    # neither
    levels: Literal["trailing", "linspace", "leading", "inner"] = "trailing"
    offset: int = Field(0, ge=0, lt=NUM_TRAIN_TIMESTEPS)  # leading, inner: added to every place of the table
    karras: bool = False  # between the first and the last of these the levels of Karras et al. 2022, equation 5

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if self.name == "flow" and self.zero_terminal_snr:
            raise ValueError("zero_terminal_snr is for linear, scaled_linear and cosine; flow ends in noise already")
        return self


class Schedule:
    """sigma as a strictly increasing function of time t in [0, 1]. `levels`, `offset` and `karras` as in
    ScheduleConfig."""

    levels: str = "trailing"
    offset: int = 0
    karras: bool = False

    def sigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`; levels outside the schedule get the nearest time."""
        raise NotImplementedError

    def sigmas(self, num_steps: int, start: float = 1.0, whole: int | None = None) -> list[float]:
        """`num_steps` levels at equally spaced times from `start`, by default the noisiest, down, then 0; under
        `karras` equally spaced in the seventh root of the level, between the first and the last of `whole` steps from
        the noisiest, by default of as many. Fewer where two would be the same, or one is 0 as in a flow; one at
        least."""
        if self.karras:
            ends = self.sigma(TIMES[self.levels](whole or num_steps, 1.0, self.offset)).tolist()
            visited = karras_sigmas(num_steps, ends[-1], ends[0], start=start)
        else:
            visited = self.sigma(TIMES[self.levels](num_steps, start, self.offset)).tolist()
        falling = [level for level, above in zip(visited, [math.inf, *visited], strict=False) if 0 < level < above]
        return [*(falling or self.sigma(torch.tensor([start], dtype=torch.float64)).tolist()), 0.0]

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest level."""
        return tuple(self.sigma(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist())


def _trailing(num_steps: int, start: float, offset: int) -> Tensor:
    return torch.linspace(start, 0, num_steps + 1, dtype=torch.float64)[:-1]


def _linspace(num_steps: int, start: float, offset: int) -> Tensor:
    if num_steps == 1:  # the noisiest, where diffusers visits the least
        return torch.tensor([start], dtype=torch.float64)
    return torch.linspace(start, 0, num_steps, dtype=torch.float64)


def _leading(num_steps: int, start: float, offset: int) -> Tensor:
    """Whole steps of the table, as Stable Diffusion's own samplers count them."""
    stride = max(1, int(start * NUM_TRAIN_TIMESTEPS) // num_steps)
    places = offset + stride * torch.arange(num_steps - 1, -1, -1, dtype=torch.float64)
    return (places / (NUM_TRAIN_TIMESTEPS - 1)).clamp(max=1)


def _inner(num_steps: int, start: float, offset: int) -> Tensor:
    """The same without the place 0, as diffusers' multistep solvers count them."""
    return _leading(num_steps + 1, start, offset)[:-1]


TIMES = {"trailing": _trailing, "linspace": _linspace, "leading": _leading, "inner": _inner}


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """x_t = (1 - t) x0 + t noise, so sigma = t / (1 - t) (Lipman et al. 2023; Liu et al. 2023)."""

    shift: float = 1.0
    levels: str = "trailing"
    offset: int = 0
    karras: bool = False
    t_max: float = 0.999  # pure noise has no finite sigma: start a thousandth before it

    def sigma(self, t: Tensor) -> Tensor:
        t = t * self.t_max
        return self.shift * t / (1 - t)

    def time(self, sigma: Tensor) -> Tensor:
        sigma = sigma / self.shift
        return (sigma / (1 + sigma) / self.t_max).clamp(0, 1)


@dataclass(frozen=True, eq=False)  # tables do not compare by one truth value
class DiscreteSchedule(Schedule):
    """A table of a thousand variance-preserving levels, joined by straight lines in log sigma."""

    log_sigmas: Tensor  # (NUM_TRAIN_TIMESTEPS,) float64, increasing
    levels: str = "trailing"
    offset: int = 0
    karras: bool = False
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def sigma(self, t: Tensor) -> Tensor:
        place = (t.double() * (NUM_TRAIN_TIMESTEPS - 1)).clamp(0, NUM_TRAIN_TIMESTEPS - 1)
        low = place.floor().long().clamp(max=NUM_TRAIN_TIMESTEPS - 2)
        table = self._table(t.device)
        return torch.lerp(table[low], table[low + 1], place - low).exp().to(t.dtype)

    def time(self, sigma: Tensor) -> Tensor:
        table = self._table(sigma.device)
        log_sigma = sigma.double().log().clamp(table[0], table[-1])
        high = torch.searchsorted(table, log_sigma).clamp(1, NUM_TRAIN_TIMESTEPS - 1)
        part = (log_sigma - table[high - 1]) / (table[high] - table[high - 1])
        return ((high - 1 + part) / (NUM_TRAIN_TIMESTEPS - 1)).to(sigma.dtype)

    def _table(self, device: torch.device) -> Tensor:
        """The levels on a device, copied there once."""
        if device not in self._placed:
            self._placed[device] = self.log_sigmas.to(device)
        return self._placed[device]


def build(config: ScheduleConfig) -> Schedule:
    visited = config.levels, config.offset, config.karras
    if config.name == "flow":
        return FlowSchedule(config.shift, *visited)
    alpha_bar = (1 - BETAS[config.name]()).cumprod(0)
    if config.zero_terminal_snr:
        alpha_bar = rescaled_to_zero_snr(alpha_bar)
        alpha_bar[-1] = alpha_bar[-2] / 4  # pure noise has no finite sigma: twice the level before it
    return DiscreteSchedule(0.5 * torch.log((1 - alpha_bar) / alpha_bar), *visited)


def rescaled_to_zero_snr(alpha_bar: Tensor) -> Tensor:
    """A table of squared signal levels (T,), its roots shifted so that the last is 0 and scaled so that the first stays
    as it is (Lin et al. 2024, Algorithm 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def _linear_betas() -> Tensor:
    return torch.linspace(1e-4, 0.02, NUM_TRAIN_TIMESTEPS, dtype=torch.float64)


def _scaled_linear_betas() -> Tensor:
    return torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2


def _cosine_betas(s: float = 0.008, most: float = 0.999) -> Tensor:
    t = torch.linspace(0, 1, NUM_TRAIN_TIMESTEPS + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=most)


BETAS = {"linear": _linear_betas, "scaled_linear": _scaled_linear_betas, "cosine": _cosine_betas}


def karras_sigmas(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0, start: float = 1.0
) -> list[float]:
    """`num_steps` levels from sigma_max to sigma_min, then 0 (Karras et al. 2022, equation 5). `start` in (0, 1] begins
    lower on the same ramp: at 1 at its top."""
    ramp = torch.linspace(1 - start, 1, num_steps, dtype=torch.float64)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [*((ends[0] + ramp * (ends[1] - ends[0])) ** rho).tolist(), 0.0]


def steps_within(num_steps: int, strength: float) -> int:
    """How many of `num_steps` lie within `strength` of the way up; one at least."""
    return max(1, math.ceil(round(num_steps * strength, 6)))


def spaced_sigmas(
    schedule: Schedule, spacing: Literal["schedule", "karras"], whole: int, start: float = 1.0
) -> list[float]:
    """The levels of a schedule by a spacing that the last of `whole` steps visit, from `start` of the way up, then
    0."""
    num_steps = steps_within(whole, start)
    if spacing == "karras":
        low, high = schedule.bounds  # the net knows no level outside
        return karras_sigmas(num_steps, max(low, SIGMA_MIN), min(high, SIGMA_MAX), start=start)
    return schedule.sigmas(num_steps, start, whole)
