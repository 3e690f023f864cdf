"""Errors and orders of every deterministic solver, over every schedule and spacing, on a mixture of Gaussians whose
denoiser is known: how far its end points lie from the exact path's, by number of steps. Seconds.

    python -m tests.benchmarks.solver_order
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from components.diffusion.schedules import ScheduleConfig, build, spaced_sigmas
from components.diffusion.solvers import SOLVERS
from tests.benchmarks.common import emit
from tests.components.helpers import solved

STOCHASTIC = ("ddpm", "euler_ancestral", "dpmpp_2m_sde")
DETERMINISTIC = ("ddim", "euler", "heun", "plms", "dpmpp_2m", "unipc")
SCHEDULES = {
    "flow": ScheduleConfig(),
    "flow, shift 3": ScheduleConfig(shift=3.0),
    "linear": ScheduleConfig(name="linear"),
    "scaled_linear": ScheduleConfig(name="scaled_linear"),
    "cosine": ScheduleConfig(name="cosine"),
    "cosine, zero SNR": ScheduleConfig(name="cosine", zero_terminal_snr=True),
}
SPACINGS = ("schedule", "karras")
STEPS = (8, 16, 32, 64)
COUNT = 64  # of starts
MEANS = torch.tensor([[1.0, 0.8], [-1.1, 0.6], [0.2, -1.2], [-0.3, 0.1]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.3, 0.25, 0.15], dtype=torch.float64)
STDS = torch.tensor([0.45, 0.6, 0.5, 0.55], dtype=torch.float64)  # of the mixture's parts


def denoised(x: Tensor, sigma: float) -> Tensor:
    """The exact expectation of the data for x (B, 2) = x0 + sigma * noise."""
    variance = STDS**2 + sigma**2
    away = x[:, None] - MEANS
    share = (WEIGHTS.log() - away.square().sum(-1) / (2 * variance) - variance.log()).softmax(1)
    return (share[..., None] * (MEANS + (STDS**2 / variance)[:, None] * away)).sum(1)


def exact(x: Tensor, sigma: float, last: float = 0.0, num_steps: int = 150) -> Tensor:
    """The path's end at level `last`: Runge and Kutta's method of fourth order in the angle whose tangent is the
    level."""

    def slope(y: Tensor, angle: float) -> Tensor:  # y = x0 cos(angle) + noise sin(angle)
        if angle <= 0:
            return torch.zeros_like(y)  # the score times 0
        x0 = denoised(y / math.cos(angle), math.tan(angle))
        return (y - x0 * math.cos(angle)) / math.tan(angle) - x0 * math.sin(angle)

    y, ends = x * math.cos(math.atan(sigma)), (math.atan(sigma), math.atan(last))
    angles = [ends[0] + (ends[1] - ends[0]) * (step / num_steps) for step in range(num_steps + 1)]
    for angle, after in pairwise(angles):
        h = after - angle
        one = slope(y, angle)
        two = slope(y + h / 2 * one, angle + h / 2)
        three = slope(y + h / 2 * two, angle + h / 2)
        y = y + h / 6 * (one + 2 * two + 2 * three + slope(y + h * three, after))
    return y / math.cos(ends[1])


def starts(sigma: float) -> Tensor:
    return sigma * torch.randn(COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@functools.cache
def ends(sigma: float, last: float) -> Tensor:
    return exact(starts(sigma), sigma, last)


def error(solver: Callable, sigmas: Sequence[float]) -> float:
    """Mean distance of the end points from the exact ones."""
    return float(
        (solved(solver(starts(sigmas[0]), sigmas, None), denoised) - ends(sigmas[0], sigmas[-1])).norm(dim=1).mean()
    )


def errors(name: str, schedule: str, spacing: str, steps: Sequence[int] = STEPS, whole: bool = True) -> list[float]:
    """`whole`: with the step from the last level to 0, of which a solver knows one end only."""
    visited = [spaced_sigmas(build(SCHEDULES[schedule]), spacing, count) for count in steps]
    return [error(SOLVERS[name], sigmas if whole else sigmas[:-1]) for sigmas in visited]


def order(found: Sequence[float], steps: Sequence[int] = STEPS) -> float:
    """The rate at which the last two errors fall."""
    return math.log(found[-2] / found[-1]) / math.log(steps[-1] / steps[-2])


def spread_error(name: str, sigmas: Sequence[float], mean: float = 0.7, std: float = 0.5) -> float:
    """How far the variance of a stochastic solver's samples is from the data's, which is Gaussian, as a share: without
    sampling, for every step is linear then, and the variance the sum of squared responses to each unit of noise."""
    units = torch.eye(len(sigmas) + 1, dtype=torch.float64)[:, :, None]  # row 0 answers to none, 1 to the start's
    solver = SOLVERS[name](mean + math.hypot(sigmas[0], std) * units[1], sigmas, lambda step: units[step + 2])
    response = solved(solver, lambda x, sigma: mean + (x - mean) * std**2 / (std**2 + sigma**2)).flatten()
    return abs(float((response[1:] - response[0]).square().sum()) / std**2 - 1)


def table(steps: Sequence[int] = STEPS, whole: bool = True) -> dict[str, dict[str, list[float]]]:
    """By schedule and spacing, then by solver: an error for each number of steps."""
    return {
        f"{schedule}, {spacing}": {name: errors(name, schedule, spacing, steps, whole) for name in DETERMINISTIC}
        for schedule in SCHEDULES
        for spacing in SPACINGS
    }


def as_text(found: dict[str, dict[str, list[float]]], steps: Sequence[int] = STEPS) -> str:
    lines = [f"{'':32}{''.join(f'{count:>10}' for count in steps)}     order"]
    for where, by_solver in found.items():
        for name, values in by_solver.items():
            told = "".join(f"{value:>10.1e}" for value in values)
            lines.append(f"{where + ': ' + name:32}{told}{order(values, steps):>10.2f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    found = table()
    print(as_text(found))
    worst = max(values["heun"][1] / values["ddim"][2] for values in found.values())
    emit(
        "solver_order",
        round(worst, 3),
        f"error of heun with {STEPS[1]} steps over ddim's with {STEPS[2]}, as many evaluations, on the worst schedule",
        "under 1",
        table={
            where: {name: [float(f"{v:.2g}") for v in vs] for name, vs in by.items()} for where, by in found.items()
        },
    )


if __name__ == "__main__":
    main()
