"""Consistency models (Song et al. 2023), tuned from a diffusion run as in Geng et al. 2025 (ECT): the net leads from
any noise level straight to the clean rows, the same ones all along a path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.randomness import Draws
from components.diffusion import schedules
from components.diffusion.solvers import Noise, Solver, renoised
from components.families.base import Losses, Tiny
from components.few_step.base import Student, give_tiny_teacher
from components.few_step.config import StudentConfig, StudentSettings
from components.shapes import per_row


class Noises(Strict):
    """How training noise levels are drawn: exp(mean + std * normal) (Geng et al. 2025 at a spread of the data of 1,
    where theirs is 0.5)."""

    mean: float = -0.4  # of the logarithm of training noise levels
    std: float = Field(2.0, gt=0)  # of the same


class Config(StudentConfig):
    """The lower level of a pair is a share 1 - (1 + 8 / (1 + e^sigma)) / ratio^stage of the upper one, and 0 below 0
    (Geng et al. 2025); `stage` is 1 at first and grows by 1 every `stage_steps` training steps, up to `stages`."""

    noises: Noises = Noises()
    ratio: float = Field(2.0, gt=1)  # by which the levels of a pair come closer from stage to stage
    stages: int = Field(8, ge=1, le=16)  # the last one stays; beyond 16 differences are lost in float32
    stage_steps: int = Field(50, ge=1)  # training steps of a stage
    huber: float = Field(0.06, ge=0)  # below it errors count by their squares (Song and Dhariwal 2024)
    objective: Literal["epsilon", "v", "flow", "edm"] = "flow"


class Model(Student):
    Config = Config
    Settings = StudentSettings
    needs_teacher = True

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The pseudo-Huber distance of what the net makes of two levels of one path, over the difference of the
        levels (Geng et al. 2025); the lower one teaches the upper one."""
        sigma = self.levels(batch.draws)
        lower = sigma * self.shares(sigma, batch.step)
        rows = self.rows(batch, sigma)
        with torch.no_grad():
            told = self.told_scale(rows.scale) | rows.condition
            clean = self.clean(rows.x, sigma, self.guided(rows, self.of_teacher))
            below = clean + per_row(lower / sigma, clean).float() * (rows.x - clean)
            known = self.clean(below, lower, self.answer(self.nets["denoiser"], below, lower, told))
            wanted = torch.where(per_row(lower > 0, clean), known, clean)
        found = self.clean(rows.x, sigma, self.answer(net, rows.x, sigma, told))
        error = (found - wanted).square().flatten(1).mean(1)
        distance = (error + self.config.huber**2).sqrt() - self.config.huber
        return {"loss": (distance / (sigma - lower).float()).mean(), "error": error.mean()}

    def levels(self, draws: Draws) -> Tensor:
        """(B,) training noise levels."""
        low, high = self.bounds
        noises = self.config.noises
        return torch.exp(noises.mean + noises.std * draws.normal("time", ()).double()).clamp(low, high)

    def shares(self, sigma: Tensor, step: int) -> Tensor:
        """(B,) what the lower level of a pair is of the upper one."""
        stage = min(step // self.config.stage_steps + 1, self.config.stages)
        gap = self.config.ratio**-stage
        return (1 - gap * (1 + 8 * torch.sigmoid(-sigma))).clamp(min=0)

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = self.schedule.bounds
        return max(low, schedules.SIGMA_MIN), min(high, schedules.SIGMA_MAX)

    def sigmas(self, settings: StudentSettings, strength: float = 1.0) -> list[float]:
        """Equally spaced times of the schedule up to the largest level that was trained."""
        num_steps = schedules.steps_within(settings.num_inference_steps, strength)
        highest = float(self.schedule.time(torch.tensor(self.bounds[1], dtype=torch.float64)))
        return self._levels(num_steps, strength * highest)

    def _solver(self, settings: StudentSettings) -> Callable[[Tensor, Sequence[float], Noise], Solver]:
        return renoised


TINY = Tiny(
    {"backbone": {"widths": (8,), "attention": (True,), "heads": 2, "context_dim": 8}},
    data="latents",
    settings={"num_inference_steps": 2, "guidance_scale": 2.0},
    prepare=give_tiny_teacher,
)
