"""Mean velocities: students that go from one time of a flow to an earlier one at once (Frans et al. 2025; Geng et al.
2025a), along z = (1 - time) * clean + time * noise.

The net answers the mean of the path's velocity over a step; the step is told by its span in the schedule's own times,
which run from 0 to 1 and are what steps are equal in.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from components.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from components.few_step.base import Student
from components.few_step.config import SPAN, StudentConfig, StudentSettings


class AverageConfig(StudentConfig):
    objective: Literal["flow"] = "flow"

    @property
    def numbers(self) -> tuple[str, ...]:
        return (*super().numbers, SPAN)


class AverageStudent(Student):
    """Base of the students whose net answers mean velocities."""

    def told_span(self, span: Tensor) -> dict[str, Tensor]:
        """Spans (B,) of schedule times as inputs of the net."""
        return {SPAN: span.float()}

    def time(self, place: Tensor) -> Tensor:
        """The flow's time, in [0, 1), of times of the schedule."""
        sigma = self.schedule.sigma(place)
        return sigma / (1 + sigma)

    def pace(self, place: Tensor) -> Tensor:
        """How fast the flow's time goes by with the schedule's."""
        sigma, least = self.schedule.sigma(place), 1 - self.schedule.t_max * place
        return self.schedule.shift * self.schedule.t_max / (least * (1 + sigma)).square()

    def told(self, settings: StudentSettings, sigma: Tensor, following: Tensor) -> dict[str, Tensor]:
        span = self.schedule.time(sigma) - self.schedule.time(following)
        return super().told(settings, sigma, following) | self.told_span(span)

    def velocity(self, net: nn.Module, z: Tensor, place: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """What a net answers about z (B, C, ...) at times (B,) of the schedule."""
        level = (NUM_TRAIN_TIMESTEPS - 1) * place
        return net(x=z, level=level.float(), **inputs)
