"""Progressive distillation (Salimans and Ho 2022): round by round one step of the student learns two of its teacher's,
which is what the student was a round ago; at first it is the diffusion run under guidance (Meng et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline
from components.diffusion.building import build_denoiser
from components.families.base import Losses, Tiny
from components.few_step.base import Rows, Student, give_tiny_teacher
from components.few_step.config import StudentConfig, StudentSettings
from components.shapes import per_row
from components.training import sharding

FORMER = "former"  # the net of a round ago


class Config(StudentConfig):
    """`first_steps`: of the student in its first round, each of which learns `ratio` steps of the teacher; divided by
    it in every round down to `last_steps`, which it samples with. `round_steps`: training steps of a round; the last
    round takes what is left."""

    first_steps: int = Field(8, ge=1, le=512)  # sampling steps of the student in its first round
    last_steps: int = Field(2, ge=1)  # sampling steps in its last round, and afterwards
    ratio: int = Field(2, ge=2, le=32)  # steps of the teacher that one of the student's learns
    round_steps: int = Field(100, ge=1)  # training steps of a round
    regress: Literal["teacher"] = "teacher"

    @model_validator(mode="after")
    def _fits(self) -> Config:
        steps = self.first_steps
        while steps > self.last_steps and steps % self.ratio == 0:
            steps //= self.ratio
        if steps != self.last_steps:
            raise ValueError(
                f"first_steps: expected last_steps ({self.last_steps}) times a power of {self.ratio}, "
                f"found {self.first_steps}"
            )
        return self

    def steps_at(self, step: int) -> int:
        """The student's sampling steps in the round of a training step."""
        return max(self.last_steps, self.first_steps // self.ratio ** min(step // self.round_steps, 10))


class Model(Student):
    Config = Config
    Settings = StudentSettings
    needs_teacher = True

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.nets[FORMER] = build_denoiser(config, data)

    @classmethod
    def why_not(cls, config: Config, settings: StudentSettings, data: DataOutline) -> str | None:
        if settings.num_inference_steps != config.last_steps:
            found = settings.num_inference_steps
            return f"num_inference_steps: this student was distilled to {config.last_steps}, found {found}"
        return super().why_not(config, settings, data)

    @property
    def usual_settings(self) -> StudentSettings:
        return StudentSettings(num_inference_steps=self.config.last_steps)

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The squared error of the clean rows that make one step end where two of the teacher's do, weighted by the
        signal-to-noise ratio where that is above 1 (Salimans and Ho 2022, section 4)."""
        self._begin_round(batch.step)
        steps = self.config.steps_at(batch.step)
        place = (batch.draws.integers("place", steps).double() + 1) / steps
        rows = self.rows(batch, self.schedule.sigma(place))
        parts = torch.linspace(0, 1, self.config.ratio + 1, dtype=torch.float64, device=place.device)[1:]
        visited = self.schedule.sigma((place[:, None] - parts / steps).clamp(min=0))
        visited[:, -1] = visited[:, -1].where(place > 1.5 / steps, 0.0)
        wanted = self._of_teacher(rows, visited.unbind(1), is_first=steps == self.config.first_steps)
        told = self.told_scale(rows.scale) | rows.condition
        error = (self.clean(rows.x, rows.sigma, self.answer(net, rows.x, rows.sigma, told)) - wanted).square()
        error = error.flatten(1).mean(1)
        return {"loss": (rows.sigma.float() ** -2).clamp(min=1).mul(error).mean(), "error": error.mean()}

    @torch.no_grad()
    def _begin_round(self, step: int) -> None:
        """Keeps the net as it is at the first step of a round. The last round keeps its teacher however long it is:
        a student that taught itself would drift."""
        if step and self.config.steps_at(step) != self.config.steps_at(step - 1):
            self.nets[FORMER].load_state_dict(sharding.gathered(self.nets["denoiser"].state_dict()))

    @torch.no_grad()
    def _of_teacher(self, rows: Rows, visited: Sequence[Tensor], is_first: bool) -> Tensor:
        """The x0 that one step from the rows' levels goes towards, to end where the teacher's steps over the `visited`
        levels (B,) each do."""

        def taught(x: Tensor, sigma: Tensor) -> Tensor:
            if is_first:
                return self.clean(x, sigma, self.guided(replace(rows, x=x, sigma=sigma), self.of_teacher))
            told = self.told_scale(rows.scale) | rows.condition
            return self.clean(x, sigma, self.answer(self.nets[FORMER], x, sigma, told))

        x, sigma = rows.x, rows.sigma
        for following in visited:
            x, sigma = torch.lerp(taught(x, sigma), x, per_row(following / sigma, x).float()), following
        kept = per_row(sigma / rows.sigma, x).float()
        return (x - kept * rows.x) / (1 - kept)


TINY = Tiny(
    {
        "backbone": {"widths": (8,), "attention": (True,), "heads": 2, "context_dim": 8},
        "first_steps": 4,
        "last_steps": 2,
        "round_steps": 2,
    },
    data="latents",
    settings={"num_inference_steps": 2, "guidance_scale": 2.0},
    prepare=give_tiny_teacher,
)
