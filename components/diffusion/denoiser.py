"""From a network to (x, sigma) -> x0, with classifier-free guidance, as coroutines that yield network calls."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from components.diffusion.objectives import OBJECTIVES
from components.diffusion.schedules import NUM_TRAIN_TIMESTEPS, Schedule
from components.diffusion.solvers import Solver
from components.sampling import Call, Preview, Trajectory, offering

Denoise = Callable[[Tensor, float], Generator[Call, Tensor, Tensor]]


@dataclass(frozen=True)
class Denoiser:
    """What a trained net means: its objective and the schedule that its noise levels are told in."""

    objective: str
    schedule: Schedule
    net: str = "unet"

    def level(self, sigma: Tensor) -> Tensor:
        """The number that tells the net the noise level: time in [0, NUM_TRAIN_TIMESTEPS - 1]."""
        return self.schedule.time(sigma) * (NUM_TRAIN_TIMESTEPS - 1)

    def call(self, x: Tensor, sigma: float, labels: Tensor) -> Generator[Call, Tensor, Tensor]:
        """One evaluation: x (B, C, H, W) and labels (B,) -> x0 (B, C, H, W)."""
        sigmas = torch.full((len(x),), sigma, device=x.device, dtype=torch.float64)
        c_skip, c_out, c_in = (float(c[0]) for c in OBJECTIVES[self.objective](sigmas[:1]))
        answer = yield Call(self.net, {"x": c_in * x, "level": self.level(sigmas).float(), "label": labels})
        return c_skip * x + c_out * answer

    def guided(self, labels: Tensor, away_from: Tensor, scale: float) -> Denoise:
        """Classifier-free guidance (Ho and Salimans 2022, equation 6, with scale = 1 + w): D = D_away + scale *
        (D_class - D_away). Labels are (B,) each; `away_from` says "no class" or a class to avoid. Both halves share one
        call; scale 1 costs no second row, nor do equal labels."""
        if scale == 1 or torch.equal(labels, away_from):
            return lambda x, sigma: self.call(x, sigma, labels)
        both = torch.cat([labels, away_from])

        def denoise(x: Tensor, sigma: float) -> Generator[Call, Tensor, Tensor]:
            towards, away = (yield from self.call(torch.cat([x, x]), sigma, both)).chunk(2)
            return away + scale * (towards - away)

        return denoise


def solve(
    solver: Solver, denoise: Denoise, preview: Callable[[Tensor, float], Preview | None] = lambda x0, sigma: None
) -> Trajectory:
    """Answers each question of a solver by a denoiser, handing the network calls on to whoever drives. Each call after
    the first offers `preview` of the latest x0 and the level that it was estimated from."""
    try:
        x, sigma = next(solver)
        known = None
        while True:
            x0 = yield from offering(denoise(x, sigma), known)
            known = preview(x0, sigma)
            x, sigma = solver.send(x0)
    except StopIteration as stop:
        return stop.value


def keeping(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """A denoiser that knows a part: where `mask` (broadcast to x) is 0 its estimate is `known`.

    A solver that starts from known + sigma * noise then holds that part at the known images under noise of each level
    (RePaint: Lugmayr et al. 2022, equation 8; in the latent space: Avrahami et al. 2023, section 4.1), whatever its
    order: the estimate is where a solver's history comes from, too (Wang et al. 2023, equation 13)."""

    def partly(x: Tensor, sigma: float) -> Generator[Call, Tensor, Tensor]:
        return torch.lerp(known, (yield from denoise(x, sigma)), mask)

    return partly
