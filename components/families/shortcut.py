"""Shortcut models (Frans et al. 2025): one net for steps of any size, which are told to it; a step learns from two of
half its size."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import DataOutline
from components.diffusion.config import Times
from components.diffusion.guidance import Condition
from components.diffusion.schedules import steps_within
from components.families.base import Losses, Tiny
from components.few_step.averages import AverageConfig, AverageStudent
from components.few_step.base import Rows, give_tiny_teacher
from components.few_step.config import StudentSettings
from components.shapes import per_row


class Config(AverageConfig):
    """`halvings`: the smallest step is 1 / 2^halvings of the way, and stands for the velocity itself. `bootstrap`:
    share of the rows that learn steps above it, of their halves. `times`: of the others."""

    halvings: int = Field(7, ge=1, le=10)  # the smallest step is 1 / 2^halvings of the way
    bootstrap: float = Field(0.25, ge=0, lt=1)  # share of the rows that learn larger steps, of their halves
    clip: float = Field(4.0, gt=0)  # of the velocities that larger steps learn, as in the authors' code
    times: Times = Times()  # of the rows that learn the velocity itself


class Model(AverageStudent):
    Config = Config
    Settings = StudentSettings

    @classmethod
    def why_not(cls, config: Config, settings: StudentSettings, data: DataOutline) -> str | None:
        if settings.num_inference_steps > 2**config.halvings:
            most, found = 2**config.halvings, settings.num_inference_steps
            return f"num_inference_steps: this student learned up to {most}, of 1 / 2^halvings each, found {found}"
        return super().why_not(config, settings, data)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The squared error of velocities: of the flow's own at the smallest step, of the mean over two steps of half
        the size at larger ones."""
        draws, smallest = batch.draws, 0.5**self.config.halvings
        doubled = draws.uniform("bootstrap") < self.config.bootstrap
        span = torch.where(doubled, 0.5 ** draws.integers("halvings", self.config.halvings), smallest)
        # steps begin at multiples of their size
        begins = span * ((draws.uniform("begin") / span).floor() + 1)
        place = torch.where(doubled, begins, self.times(draws)).double()
        rows = self.rows(batch, self.schedule.sigma(place))
        z = rows.x / (1 + per_row(rows.sigma, rows.x)).float()
        told = self.told_scale(rows.scale) | rows.condition
        wanted = torch.empty_like(z)
        if doubled.any():
            wanted[doubled] = self.of_halves(rows.where(doubled), z[doubled], place[doubled], span[doubled])
        if not doubled.all():
            wanted[~doubled] = self.guided(rows.where(~doubled), self.of_flow)
        error = (self.velocity(net, z, place, told | self.told_span(span)) - wanted).square()
        return {"loss": error.mean()}

    def of_flow(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity itself, unguided: the teacher's or, without one, the net's own at the smallest step."""
        if self.teacher is not None:
            return self.of_teacher(x, sigma, condition)
        plain = torch.ones_like(sigma).float()
        told = self.told_scale(plain) | self.told_span(plain * 0.5**self.config.halvings)
        return self.answer(self.nets["denoiser"], x, sigma, told | condition)

    @torch.no_grad()
    def of_halves(self, rows: Rows, z: Tensor, place: Tensor, span: Tensor) -> Tensor:
        """The mean of the net's velocities over two steps of half the span from `place` on, weighted by how much of the
        flow's time each takes."""
        net, half = self.nets["denoiser"], span / 2
        told = self.told_scale(rows.scale) | rows.condition | self.told_span(half)
        middle, end = place - half, place - span
        first, second = (self.time(a) - self.time(b) for a, b in ((place, middle), (middle, end)))
        first, second = per_row(first, z).float(), per_row(second, z).float()
        before = self.velocity(net, z, place, told)
        after = self.velocity(net, z - first * before, middle, told)
        return ((first * before + second * after) / (first + second)).clamp(-self.config.clip, self.config.clip)

    def sigmas(self, settings: StudentSettings, strength: float = 1.0) -> list[float]:
        """Steps of trained sizes, as equal as they can be, larger ones first; an edit's, which begin at its strength,
        are smaller by that, between trained sizes."""
        num_steps = steps_within(settings.num_inference_steps, strength)
        whole = 2 ** math.floor(math.log2(num_steps))
        spans = [1 / whole] * (2 * whole - num_steps) + [1 / (2 * whole)] * (2 * (num_steps - whole))
        places = strength * (1 - torch.tensor([0.0, *spans], dtype=torch.float64).cumsum(0))
        return [*self.schedule.sigma(places[:-1]).tolist(), 0.0]


TINY = Tiny(
    {"backbone": {"widths": (8,), "attention": (True,), "heads": 2, "context_dim": 8}, "halvings": 3, "bootstrap": 0.5},
    data="latents",
    settings={"num_inference_steps": 3, "guidance_scale": 2.0},
    prepare=give_tiny_teacher,
)
