"""What few-step students share: they begin as a diffusion run, their teacher, they learn what guidance makes of it, and
they are told by numbers what a step is to do.

Rows x lie in the variance-exploding frame of components/diffusion, noise levels sigma are (B,) float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from components.config import parse
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline, RunInfo
from components.diffusion.building import refuse_unalike
from components.diffusion.guidance import Condition, Denoise, Guidance
from components.diffusion.objectives import OBJECTIVES, target
from components.diffusion.schedules import steps_within
from components.diffusion.solvers import SOLVERS, Noise, Solver
from components.errors import ConfigError
from components.families import family_name
from components.families.base import Family, Judge, Losses, Phase, Role
from components.families.latent_diffusion import Model as LatentDiffusion
from components.few_step.config import GUIDANCE, StudentConfig, StudentSettings
from components.few_step.validation import DISTANCES, step_figures
from components.metrics.figures import Figures
from components.sampling.requests import Request
from components.sampling.trajectories import Call
from components.shapes import per_row

TEACHER = "teacher"  # the diffusion run that a student begins as, and that guides what it learns
NET_KEYS = ("conditioning", "backbone", "text", "objective", "schedule")  # of a teacher's config and its student's


@dataclass(frozen=True)
class Rows:
    """Noisy rows x = clean + sigma * noise of a batch, (B, C, ...) each. `sigma`, `scale` (B,): noise levels and
    guidance scales; `condition`: what steers the net, `nothing`: the same of no class or text."""

    clean: Tensor
    noise: Tensor
    x: Tensor
    sigma: Tensor
    scale: Tensor
    condition: Condition
    nothing: Condition

    def where(self, chosen: Tensor) -> Rows:
        """Those of the rows that are chosen, (B,) booleans."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Rows(
            **{
                name: part[chosen] if isinstance(part, Tensor) else {key: value[chosen] for key, value in part.items()}
                for name, part in parts.items()
            }
        )


class Student(LatentDiffusion):
    """Base of the few-step families. Subclasses say `loss`, the numbers of a step and, where it is not that of an
    ordinary differential equation, the solver."""

    Settings = StudentSettings
    inherits: ClassVar[Mapping[str, tuple[str, ...]]] = {TEACHER: (*NET_KEYS, "flips", "label_dropout")}
    held_out = None
    judged_figures = tuple(DISTANCES.values())
    needs_teacher: ClassVar[bool] = False

    def __init__(self, config: StudentConfig, data: DataInfo):
        super().__init__(config, data)
        self.accepts = frozenset(name for name in self.accepts if not name.startswith("negative"))
        self.phases = (Phase("distil", "denoiser", self.loss, config.optimizer),)

    @classmethod
    def early_nets(cls, config: StudentConfig) -> dict:
        return {}

    @classmethod
    def roles(cls, config: StudentConfig) -> dict[str, Role]:
        # without rows of no condition a student cannot learn by itself what guidance leads away from
        needed = cls.needs_teacher or (config.is_guided and not config.label_dropout)
        return {TEACHER: Role(family="latent_diffusion", needed=needed)}

    @classmethod
    def refuse_unfit_input(cls, config: StudentConfig, data: DataInfo, role: str, run: RunInfo) -> None:
        if role == TEACHER:
            other = parse(LatentDiffusion.Config, run.config, role)
            refuse_unalike(f"{family_name(cls)}: {role}", (config, data), (other, run.data), NET_KEYS)
            if config.is_guided and not other.label_dropout:
                raise ConfigError(
                    f"{family_name(cls)}: {role}: never trained without its {config.conditioning}, so that nothing "
                    "guides; expected one with label_dropout, or most_guidance: 1"
                )

    def receive(self, role: str, given: Family) -> None:
        """Begins as the teacher; what the net is told beside noise levels changes nothing at first."""
        assert role == TEACHER, f"{family_name(type(self))} takes no {role}"
        super(LatentDiffusion, self).receive(role, given)
        own, learned = self.nets["denoiser"].state_dict(), given.nets["denoiser"].state_dict()
        self.nets["denoiser"].load_state_dict({name: learned.get(name, value) for name, value in own.items()})

    @property
    def teacher(self) -> nn.Module | None:
        """Its frozen net."""
        return self.received[TEACHER].nets["denoiser"] if TEACHER in self.received else None

    @classmethod
    def why_not(cls, config: StudentConfig, settings: StudentSettings, data: DataOutline) -> str | None:
        if config.conditioning != "none" and settings.guidance_scale > config.most_guidance:
            return (
                f"guidance_scale: this student learned scales from 1 to {config.most_guidance:g}, "
                f"found {settings.guidance_scale:g}"
            )
        return None

    @classmethod
    def unheard(cls, config: StudentConfig, settings: StudentSettings, data: DataOutline) -> None:
        return None

    # -- training -----------------------------------------------------------------------------------------------------

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        raise NotImplementedError

    def told_scale(self, scale: Tensor) -> dict[str, Tensor]:
        """Guidance scales (B,) as inputs of the net."""
        return {GUIDANCE: 1 - 1 / scale} if self.config.is_guided else {}

    def answer(self, net: nn.Module, x: Tensor, sigma: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """A net's own answer for rows x (B, C, ...) at noise levels (B,)."""
        _, _, c_in = self._coefficients(x, sigma)
        return net(x=c_in * x, level=self.preconditioner.level(sigma).float(), **inputs)

    def clean(self, x: Tensor, sigma: Tensor, answer: Tensor) -> Tensor:
        """x0 of rows at noise levels, by a net's answer."""
        c_skip, c_out, _ = self._coefficients(x, sigma)
        return c_skip * x + c_out * answer

    def _coefficients(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        return tuple(c.float() for c in OBJECTIVES[self.config.objective](per_row(sigma, x)))

    @torch.no_grad()
    def guided(self, rows: Rows, ask: Callable[[Tensor, Tensor, Condition], Tensor]) -> Tensor:
        """What a net should answer about noisy rows under their guidance scales: `regress: teacher` what `ask`,
        (x, sigma, condition) -> answer, gives, `data` what the clean rows say. Either is led away from the answer to no
        condition by one call of twice as many rows."""
        is_taught = self.config.regress == "teacher" and self.teacher is not None
        wide, objective = per_row(rows.sigma, rows.x), OBJECTIVES[self.config.objective]
        if not self.config.is_guided:
            if is_taught:
                return ask(rows.x, rows.sigma, rows.condition)
            return target(rows.clean, rows.noise, wide, objective)
        both = {name: torch.cat([rows.condition[name], rows.nothing[name]]) for name in rows.condition}
        towards, away = ask(torch.cat([rows.x, rows.x]), torch.cat([rows.sigma, rows.sigma]), both).chunk(2)
        known = towards if is_taught else target(rows.clean, rows.noise, wide, objective)
        scale = rows.scale.where(self._is_guided_at(rows.sigma), 1.0)
        return known + (per_row(scale, rows.x) - 1) * (towards - away)

    def _is_guided_at(self, sigma: Tensor) -> Tensor:
        first, last = self.config.guided_levels or (0.0, math.inf)
        return (first < sigma) & (sigma <= last)

    def of_teacher(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The teacher's answer."""
        return self.answer(self.teacher, x, sigma, condition)

    def rows(self, batch: Batch, sigma: Tensor) -> Rows:
        """The batch at noise levels (B,), and all that is drawn of it."""
        clean = self.space.normalise(self.space.clean(batch, self.config.flips))
        noise = batch.draws.normal("noise", self.data.shape)
        return Rows(
            clean=clean,
            noise=noise,
            x=clean + per_row(sigma, clean).float() * noise,
            sigma=sigma,
            scale=self.config.most_guidance ** batch.draws.uniform("guidance"),  # its logarithm is uniform
            condition=self._training_condition(batch, self.config.label_dropout),
            nothing=self._training_condition(batch, label_dropout=math.inf),
        )

    def validate(self, train: Mapping[str, Tensor], held_out: Mapping[str, Tensor], judge: Judge | None) -> Figures:
        return {} if judge is None else step_figures(self, held_out, judge)

    @property
    def likelihood(self) -> None:
        """None: its answers are not those of an ordinary differential equation."""
        return None

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sigmas(self, settings: StudentSettings, strength: float = 1.0) -> list[float]:
        num_steps = steps_within(settings.num_inference_steps, strength)
        return self._levels(num_steps, strength)

    def _levels(self, num_steps: int, start: float) -> list[float]:
        """Equally spaced times of the schedule from `start` down, whatever its own samplers visit, then 0."""
        places = torch.linspace(start, 0, num_steps + 1, dtype=torch.float64)[:-1]
        return [*self.schedule.sigma(places).tolist(), 0.0]

    def _guidance(self, settings: StudentSettings) -> Guidance:
        return Guidance()  # the net is told its scale: no second row

    def _threshold(self, settings: StudentSettings) -> None:
        return None

    def _solver(self, settings: StudentSettings) -> Callable[[Tensor, Sequence[float], Noise], Solver]:
        return SOLVERS["ddim"]

    def _denoise(
        self, request: Request, guidance: Guidance, sigmas: Sequence[float]
    ) -> Generator[Call, Tensor, Denoise]:
        condition, _ = yield from self._conditions(request, guidance)
        settings, following = request.settings, dict(pairwise(sigmas))

        def denoise(x: Tensor, sigma: float) -> Generator[Call, Tensor, Tensor]:
            numbers = self.told(settings, *torch.tensor([sigma, following[sigma]], dtype=torch.float64))
            inputs = {name: x.new_full((len(x),), value.item()) for name, value in numbers.items()}
            return (yield from self.preconditioner.call(x, sigma, {**condition, **inputs}))

        return denoise

    def told(self, settings: StudentSettings, sigma: Tensor, following: Tensor) -> dict[str, Tensor]:
        """The numbers that the net is told of a step from one noise level to the following, each ()."""
        return self.told_scale(torch.tensor(settings.guidance_scale))


def give_tiny_teacher(student: Student) -> None:
    """For tests: a teacher of the student's own shape, always the same, no weight at the zero that some begin at."""
    keys = {name: getattr(student.config, name) for name in NET_KEYS}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        teacher = LatentDiffusion(LatentDiffusion.Config(**keys), student.data)
        for parameter in teacher.nets["denoiser"].parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, device="cpu").to(parameter)
    teacher.nets.requires_grad_(False).eval()
    student.receive(TEACHER, teacher)
