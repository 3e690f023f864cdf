"""From a network to (x, sigma) -> x0, guided, as coroutines that yield network calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from components.diffusion.objectives import OBJECTIVES, Coefficients
from components.diffusion.reuse import Reuse
from components.diffusion.schedules import NUM_TRAIN_TIMESTEPS, Schedule
from components.diffusion.solvers import Solver
from components.sampling.trajectories import Call, Preview, Trajectory, offering
from components.shapes import per_row

Denoise = Callable[[Tensor, float], Generator[Call, Tensor, Tensor]]
NO_SPREAD = 1e-6  # of an answer of one value, but for rounding: there is nothing to bring back
NUM_KEPT = 2**14  # noise levels whose numbers are kept
Condition = Mapping[str, Tensor]  # what steers the net, by the name of its input, a row an image


@dataclass(frozen=True)
class Guidance:
    """How far to extrapolate away from a worse answer.

    scale:     1 is none, and costs no row
    interval:  noise levels sigma above the first and up to the second get it, others cost no row (Kynkaanniemi et al.
               2024, section 3); None: all
    rescale:   share of the result whose spread is brought back to that of the better answer (Lin et al. 2024, section
               3.4)
    guide:     the net that gives the worse answer to the same question (Karras et al. 2024a); None: the same net to
               another question
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    guide: str | None = None

    def applies(self, sigma: float) -> bool:
        return self.scale != 1 and (self.interval is None or self.interval[0] < sigma <= self.interval[1])

    def combine(self, better: Tensor, worse: Tensor) -> Tensor:
        """Answers of a net, (B, C, ...) each."""
        guided = worse + self.scale * (better - worse)
        if self.rescale == 0:
            return guided
        spread, wanted = (per_row(answer.flatten(1).std(1), answer) for answer in (guided, better))
        factor = torch.where(spread > NO_SPREAD, wanted / spread, 1.0)
        return torch.lerp(guided, guided * factor, self.rescale)


def level(schedule: Schedule, sigma: Tensor) -> Tensor:
    """The number that tells a net the noise level, of sigma's shape: time in [0, NUM_TRAIN_TIMESTEPS - 1]."""
    return schedule.time(sigma) * (NUM_TRAIN_TIMESTEPS - 1)


# Trajectories meet the same few levels over and over; on a GPU each operation that is left out is a launch saved
@functools.lru_cache(NUM_KEPT)
def level_of(schedule: Schedule, sigma: float) -> float:
    """`level` of one noise level, in float32."""
    return level(schedule, torch.tensor([sigma], dtype=torch.float64)).float().item()


@functools.lru_cache(NUM_KEPT)
def coefficients_of(objective: str, sigma: float) -> Coefficients:
    """An objective's coefficients at one noise level, numbers in float64."""
    return Coefficients(*(c.item() for c in OBJECTIVES[objective](torch.tensor(sigma, dtype=torch.float64))))


@dataclass(frozen=True)
class Preconditioner:
    """Turns a net's answers into x0 (Karras et al. 2022, equation 7): its objective, and the schedule that its noise
    levels are told in."""

    objective: str
    schedule: Schedule
    net: str = "denoiser"

    def level(self, sigma: Tensor) -> Tensor:
        """The number that tells the net the noise level: time in [0, NUM_TRAIN_TIMESTEPS - 1]."""
        return level(self.schedule, sigma)

    def question(self, x: Tensor, sigma: float) -> dict[str, Tensor]:
        """What a net is asked about x (B, C, ...), but for what steers it."""
        told = torch.full((len(x),), level_of(self.schedule, sigma), device=x.device)
        return {"x": self._coefficients(sigma).c_in * x, "level": told}

    def denoised(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        """x0, from a net's answer."""
        c_skip, c_out, _ = self._coefficients(sigma)
        return c_skip * x + c_out * answer

    def _coefficients(self, sigma: float) -> Coefficients:
        return coefficients_of(self.objective, sigma)

    def call(self, x: Tensor, sigma: float, condition: Condition) -> Generator[Call, Tensor, Tensor]:
        """One evaluation: x (B, C, ...) under a condition of B rows -> x0 (B, C, ...)."""
        return self.denoised(x, sigma, (yield Call(self.net, self.question(x, sigma) | condition)))

    def guided(self, towards: Condition, away: Condition, guidance: Guidance, every: int = 1) -> Denoise:
        """Guidance away from what the condition `away` gives (classifier-free: Ho and Salimans 2022, equation 6, with
        scale = 1 + w; both questions share one call), or from what another net gives, to whom `away` says the same as
        `towards` in its own terms. Equal conditions cost no second row. `every`: of Reuse, one for all evaluations."""
        if guidance.guide is None and all(torch.equal(towards[name], away[name]) for name in towards):
            guidance = replace(guidance, scale=1.0)
        both = {name: torch.cat([towards[name], away[name]]) for name in towards}
        reuse = Reuse(every)

        def ask(net: str, x: Tensor, sigma: float, condition: Condition) -> Generator[Call, Any, Tensor]:
            return (yield from reuse.ask(net, self.question(x, sigma) | condition))

        def denoise(x: Tensor, sigma: float) -> Generator[Call, Any, Tensor]:
            if not guidance.applies(sigma):
                return self.denoised(x, sigma, (yield from ask(self.net, x, sigma, towards)))
            if guidance.guide is None:
                better, worse = (yield from ask(self.net, torch.cat([x, x]), sigma, both)).chunk(2)
            else:
                better = yield from ask(self.net, x, sigma, towards)
                worse = yield from ask(guidance.guide, x, sigma, away)
            return self.denoised(x, sigma, guidance.combine(better, worse))

        return denoise


def relay(base: Denoise, refine: Denoise, preconditioner: Preconditioner, share: float) -> Denoise:
    """`base` until `share` of the times is done, then `refine` (experts by noise level: Balaji et al. 2022, section
    4.1)."""
    cut = round(NUM_TRAIN_TIMESTEPS * (1 - share))

    def denoise(x: Tensor, sigma: float) -> Generator[Call, Tensor, Tensor]:
        # times come back from sigma a little off, and are rounded
        is_noisy = level_of(preconditioner.schedule, sigma) > cut - 1e-3
        return (yield from (base if is_noisy else refine)(x, sigma))

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


def thresholded(
    denoise: Denoise, quantile: float, normalise: Callable[[Tensor], Tensor], denormalise: Callable[[Tensor], Tensor]
) -> Denoise:
    """A denoiser whose estimates of images stay in [-1, 1]: those that leave it are brought back by as much as this
    quantile of their values does (dynamic thresholding: Saharia et al. 2022, section 2.3), where clipping alone would
    saturate them under strong guidance. The functions lead from images to what is denoised, and back."""

    def bounded(x: Tensor, sigma: float) -> Generator[Call, Tensor, Tensor]:
        images = denormalise((yield from denoise(x, sigma)))
        most = torch.quantile(images.flatten(1).abs().float(), quantile, dim=1).clamp(min=1)
        wide = per_row(most, images)
        return normalise(torch.maximum(torch.minimum(images, wide), -wide) / wide)

    return bounded


def keeping(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """A denoiser that knows a part: where `mask` (broadcast to x) is 0 its estimate is `known`.

    A solver that starts from known + sigma * noise then holds that part at the known images under noise of each level
    (RePaint: Lugmayr et al. 2022, equation 8; in the latent space: Avrahami et al. 2023, section 4.1), whatever its
    order: the estimate is where a solver's history comes from, too (Wang et al. 2023, equation 13)."""

    def partly(x: Tensor, sigma: float) -> Generator[Call, Tensor, Tensor]:
        return torch.lerp(known, (yield from denoise(x, sigma)), mask)

    return partly
