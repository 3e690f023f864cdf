"""Distribution matching distillation (Yin et al. 2024a) as improved by Yin et al. 2024b (DMD2): a student of one to a
few steps is moved by the difference of two scores, the teacher's under guidance and that of a net which learns the
student's own rows, so that its rows come to be distributed as the teacher's; by choice it also plays against a critic,
for which the data are real.

The two nets move at two time scales, as those of a GAN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from components.config import Strict
from components.data.dataset import Batch
from components.data.info import DataInfo, DataOutline
from components.diffusion.building import build_denoiser
from components.diffusion.config import Times
from components.diffusion.objectives import OBJECTIVES, target
from components.diffusion.solvers import Noise, Solver, renoised
from components.families.base import Family, Losses, Phase, Tiny
from components.few_step.base import TEACHER, Rows, Student, give_tiny_teacher
from components.few_step.config import StudentConfig, StudentSettings
from components.few_step.fake_score import FakeScore
from components.gan.losses import LOSSES
from components.shapes import per_row
from components.training.optimizers import OptimizerConfig

FAKE, DISTIL = "fake", "distil"  # the net that learns the student's rows; the student's phase
EARLIEST, LATEST = 0.02, 0.98  # times of the schedule that scores are compared at (Yin et al. 2024a, appendix)


class Adversarial(Strict):
    """A critic on the fake score's deep features, which are noisy as its inputs are (Yin et al. 2024b, section 4.3)."""

    loss: Literal["non_saturating", "hinge", "wasserstein", "least_squares"] = "non_saturating"
    generator: float = Field(3e-3, gt=0)  # weight in the student's loss
    critic: float = Field(1e-2, gt=0)  # weight in the fake score's loss


class Config(StudentConfig):
    """`most_steps`: the student learns to sample with it and its halves, 1 among them, each on rows of its own sampling
    so far (Yin et al. 2024b, section 4.5). `times`: of the noise under which scores are compared and learned."""

    most_steps: int = Field(4, ge=1, le=8)  # sampling steps, a power of two
    num_score_steps: int = Field(5, ge=1)  # the fake score's steps for each of the student's
    times: Times = Times(density="uniform")
    adversarial: Adversarial | None = None
    score: OptimizerConfig = OptimizerConfig(learning_rate=5e-4, schedule="cosine", warmup=50)  # the fake score's
    regress: Literal["teacher"] = "teacher"

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.most_steps & (self.most_steps - 1):
            raise ValueError(f"most_steps: expected a power of two, found {self.most_steps}")
        if self.adversarial is not None and not self.backbone.reuses:
            raise ValueError("adversarial: the critic sees the backbone's deep features; this one has no deep part")
        return self

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of steps that it samples with."""
        return tuple(2**power for power in range(self.most_steps.bit_length()))


class Model(Student):
    Config = Config
    Settings = StudentSettings
    needs_teacher = True

    def __init__(self, config: Config, data: DataInfo):
        super().__init__(config, data)
        self.nets[FAKE] = FakeScore(build_denoiser(config, data), judges=config.adversarial is not None)
        # in float32: the student learns from differences of scores, which are small
        common = {"low_precision": False, "one_backward": False}
        every = {"every": config.num_score_steps, "ahead": self.generate}
        self.phases = (
            Phase("score", FAKE, self.score_loss, config.score, **common),
            Phase(DISTIL, "denoiser", self.loss, config.optimizer, **common, **every),
        )

    def receive(self, role: str, given: Family) -> None:
        super().receive(role, given)
        if role == TEACHER:
            self.nets[FAKE].denoiser.load_state_dict(self.nets["denoiser"].state_dict())

    @classmethod
    def why_not(cls, config: Config, settings: StudentSettings, data: DataOutline) -> str | None:
        if settings.num_inference_steps not in config.counts:
            learned, found = ", ".join(map(str, config.counts)), settings.num_inference_steps
            return f"num_inference_steps: this student learned {learned}, found {found}"
        return super().why_not(config, settings, data)

    @property
    def usual_settings(self) -> StudentSettings:
        return StudentSettings(num_inference_steps=min(2, self.config.most_steps))

    # -- training -----------------------------------------------------------------------------------------------------

    def generate(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The student's rows `clean` of a step, (B, C, ...): each the answer at one step of a path of its own, which
        the student has come along so far."""
        draws, student = batch.draws, self.nets["denoiser"]
        count = 2 ** draws.integers("count", len(self.config.counts))
        last = (draws.uniform("last") * count).long()  # steps that lie behind
        rows = self.rows(batch, self.schedule.sigma(torch.ones_like(count).double()))
        x = per_row(rows.sigma, rows.noise).float() * rows.noise
        for number in range(1, self.config.most_steps):
            if not (going := last >= number).any():
                break
            sigma = self.schedule.sigma((1 - number / count).double())
            with torch.no_grad():
                made = self.made(student, replace(rows, x=x).where(going))
            fresh = draws.normal(f"noise {number}", self.data.shape)[going]
            x[going] = made + per_row(sigma[going], made).float() * fresh
            rows = replace(rows, sigma=torch.where(going, sigma, rows.sigma))
        return {"clean": self.made(net, replace(rows, x=x))}

    def made(self, net: nn.Module, rows: Rows) -> Tensor:
        """What a student's net makes of rows, clean."""
        told = self.told_scale(rows.scale) | rows.condition
        return self.clean(rows.x, rows.sigma, self.answer(net, rows.x, rows.sigma, told))

    def generated(self, net: nn.Module, batch: Batch) -> Tensor:
        """The rows of `generate`, called here or ahead of the phases."""
        found = batch.ahead[DISTIL] if DISTIL in batch.ahead else self.generate(net, batch)
        return found["clean"]

    def noised(self, batch: Batch, clean: Tensor, name: str) -> Rows:
        """Clean rows under noise of the group's name, steered as the batch is."""
        draws = batch.draws.fold(name)
        place = EARLIEST + (LATEST - EARLIEST) * self.times(draws).double()
        rows, noise = self.rows(batch, self.schedule.sigma(place)), draws.normal("noise", self.data.shape)
        return replace(rows, clean=clean, noise=noise, x=clean + per_row(rows.sigma, clean).float() * noise)

    def score_loss(self, net: nn.Module, batch: Batch) -> Losses:
        """The error of denoising the student's rows, and the critic's loss beside."""
        with torch.no_grad():
            made = self.generated(self.nets["denoiser"], batch).detach()
        fake = self.noised(batch, made, "score")
        told = self.told_scale(fake.scale) | fake.condition
        wanted = target(made, fake.noise, per_row(fake.sigma, made), OBJECTIVES[self.config.objective])
        adversarial = self.config.adversarial
        if adversarial is None:
            answer, _ = self.answer(net, fake.x, fake.sigma, told)
            return {"loss": (answer - wanted).square().mean()}
        data = self.space.normalise(self.space.clean(batch, self.config.flips))
        noise = batch.draws.normal("noise of data", self.data.shape)
        x = torch.cat([fake.x, data + per_row(fake.sigma, data).float() * noise])
        both = {name: torch.cat([value, value]) for name, value in told.items()}
        answer, scores = self.answer(net, x, torch.cat([fake.sigma, fake.sigma]), both)
        denoising = (answer.chunk(2)[0] - wanted).square().mean()
        of_fake, of_real = scores.chunk(2)
        critic = LOSSES[adversarial.loss].discriminator(of_real, of_fake, 1.0)
        return {"loss": denoising + adversarial.critic * critic, "denoising": denoising, "critic": critic}

    def loss(self, net: nn.Module, batch: Batch) -> Losses:
        """A square whose gradient at the student's rows is the difference of the scores, over the distance that the
        teacher moves them by (Yin et al. 2024a, equations 7 and 8); and what the critic says of them."""
        made = self.generated(net, batch)
        rows = self.noised(batch, made.detach(), DISTIL)
        told = self.told_scale(rows.scale) | rows.condition
        with torch.no_grad():
            real = self.clean(rows.x, rows.sigma, self.guided(rows, self.of_teacher))
            fake = self.clean(rows.x, rows.sigma, self.answer(self.nets[FAKE].denoiser, rows.x, rows.sigma, told))
            distance = (rows.clean - real).abs().flatten(1).mean(1).clamp(min=1e-4)
            wanted = rows.clean - (fake - real) / per_row(distance, real)
        matching = 0.5 * (made - wanted).square().mean()
        adversarial = self.config.adversarial
        if adversarial is None:
            return {"loss": matching}
        noisy = made + per_row(rows.sigma, made).float() * rows.noise
        _, scores = self.answer(self.nets[FAKE], noisy, rows.sigma, told)
        deceived = LOSSES[adversarial.loss].generator(scores, None)
        return {
            "loss": matching + adversarial.generator * deceived,
            "matching": matching,
            "adversarial": deceived,
        }

    # -- sampling -----------------------------------------------------------------------------------------------------

    def _solver(self, settings: StudentSettings) -> Callable[[Tensor, Sequence[float], Noise], Solver]:
        return renoised


TINY = Tiny(
    {
        "backbone": {"widths": (8, 8), "attention": (False, True), "heads": 2, "context_dim": 8},
        "most_steps": 2,
        "num_score_steps": 2,
        "adversarial": {},
    },
    data="latents",
    settings={"num_inference_steps": 2, "guidance_scale": 2.0},
    prepare=give_tiny_teacher,
)
