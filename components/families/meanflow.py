"""MeanFlow (Geng et al. 2025a) in its improved form (Geng et al. 2025b): the mean velocity between two times is learned
from its derivative along the path; guidance scale and the levels that are guided are inputs of the net."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from components.data.dataset import Batch
from components.data.info import DataOutline
from components.data.randomness import Draws
from components.diffusion import schedules
from components.diffusion.config import refuse_bad_interval
from components.diffusion.guidance import Condition
from components.families.base import Losses, Tiny
from components.few_step.averages import AverageConfig, AverageStudent
from components.few_step.base import give_tiny_teacher
from components.few_step.config import StudentSettings
from components.shapes import per_row

FIRST, LAST = "guided_from", "guided_to"  # times of the schedule between which guidance acts, as inputs of the net


class Config(AverageConfig):
    """Both ends of a step are drawn logit-normally, the larger one first. `apart`: share of the rows whose ends differ;
    the others learn the velocity itself."""

    mean: float = -0.4  # of the logit of the times that steps begin and end at
    std: float = Field(1.0, gt=0)  # of the same
    apart: float = Field(0.5, ge=0, le=1)  # share of the rows whose steps have two ends
    power: float = Field(1.0, ge=0, le=2)  # of the adaptive weight, 0 for none
    floor: float = Field(1e-2, gt=0)  # of the mean squared error that it divides by

    @model_validator(mode="after")
    def _has_pace(self) -> Config:
        if self.schedule.name != "flow":
            found = self.schedule.name
            raise ValueError(f"schedule.name: a table has no derivative by time; expected flow, found {found}")
        return self

    @property
    def numbers(self) -> tuple[str, ...]:
        return (*super().numbers, *((FIRST, LAST) if self.is_guided else ()))


class Settings(StudentSettings):
    guidance_interval: tuple[float, float] | None = None  # noise levels sigma: above the first, up to the second

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        refuse_bad_interval(self.guidance_interval)
        return self


class Model(AverageStudent):
    Config = Config
    Settings = Settings

    @classmethod
    def why_not(cls, config: Config, settings: Settings, data: DataOutline) -> str | None:
        if settings.guidance_interval is not None and not config.is_guided:
            return "guidance_interval: this student learned no guidance; expected none"
        if settings.guidance_interval is not None:
            middle = float(schedules.build(config.schedule).sigma(torch.tensor(0.5, dtype=torch.float64)))
            if not settings.guidance_interval[0] <= middle <= settings.guidance_interval[1]:
                return f"guidance_interval: this student learned those around {middle:.3g}"
        return super().why_not(config, settings, data)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The squared error of the velocity that the net's mean velocity stands for, u + (t - r) du/dt with the
        derivative fixed (Geng et al. 2025b), each row's over itself."""
        place, end = self.ends(batch.draws)
        rows, interval = self.rows(batch, self.schedule.sigma(place)), self.intervals(batch.draws)
        z = rows.x / (1 + per_row(rows.sigma, rows.x)).float()
        told = self.told_scale(rows.scale) | self.told_interval(*interval) | rows.condition
        is_guided = (interval[0] < place) & (place <= interval[1])
        wanted = self.guided(replace(rows, scale=rows.scale.where(is_guided, 1.0)), self.of_flow)
        wanted, apart = wanted.clone(), place > end
        if apart.any():
            some = {name: values[apart] for name, values in told.items()}
            wanted[apart] -= self.change(z[apart], place[apart], end[apart], some)
        answer = self.velocity(net, z, place, told | self.told_span(place - end))
        error = (answer - wanted).square().flatten(1).mean(1)
        weight = (error.detach() + self.config.floor) ** -self.config.power
        return {"loss": (weight * error).mean(), "error": error.mean()}

    def ends(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Times (B,) of the schedule, float64: where a step begins, and where it ends, no later."""
        drawn = self.config.mean + self.config.std * draws.normal("ends", (2,)).double()
        end, place = torch.sigmoid(drawn).sort(1).values.unbind(1)
        return place, torch.where(draws.uniform("apart") < self.config.apart, end, place)

    def intervals(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Times (B,) of the schedule between which guidance acts: all for half of the rows, else around the middle."""
        first, last = draws.uniform("guided", (2,)).mul(0.5).unbind(1)
        whole = draws.uniform("guided throughout") < 0.5
        return first.masked_fill(whole, 0.0), (last + 0.5).masked_fill(whole, 1.0)

    def told_interval(self, first: Tensor, last: Tensor) -> dict[str, Tensor]:
        """Intervals as inputs of the net."""
        return {FIRST: first.float(), LAST: last.float()} if self.config.is_guided else {}

    @torch.no_grad()
    def change(self, z: Tensor, place: Tensor, end: Tensor, told: dict[str, Tensor]) -> Tensor:
        """(t - r) du/dt of the net's mean velocity from `place` to a fixed `end`, by forward-mode differentiation along
        the net's own velocity, which is that over no span."""
        net = self.nets["denoiser"]

        def mean(z: Tensor, place: Tensor) -> Tensor:
            return self.velocity(net, z, place, told | self.told_span(place - end))

        # in float32, since differences of steps are small; the fused kernels of attention have no forward mode
        with torch.autocast(z.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            own = self.velocity(net, z, place, told | self.told_span(torch.zeros_like(place)))
            along = per_row(self.pace(place), z).float() * own
            _, change = torch.func.jvp(mean, (z, place), (along, torch.ones_like(place)))
        return per_row((self.time(place) - self.time(end)) / self.pace(place), z).float() * change

    def of_flow(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity itself, unguided: the teacher's or, without one, the net's own over no span."""
        if self.teacher is not None:
            return self.of_teacher(x, sigma, condition)
        one = torch.ones_like(sigma).float()
        told = self.told_scale(one) | self.told_interval(0 * one, one) | self.told_span(0 * one)
        return self.answer(self.nets["denoiser"], x, sigma, told | condition)

    def told(self, settings: Settings, sigma: Tensor, following: Tensor) -> dict[str, Tensor]:
        interval = torch.tensor(settings.guidance_interval or self.schedule.bounds, dtype=torch.float64)
        return super().told(settings, sigma, following) | self.told_interval(*self.schedule.time(interval))


TINY = Tiny(
    {"backbone": {"widths": (8,), "attention": (True,), "heads": 2, "context_dim": 8}},
    data="latents",
    settings={"num_inference_steps": 2, "guidance_scale": 2.0},
    prepare=give_tiny_teacher,
)
