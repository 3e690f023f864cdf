"""What a few-step student is and how it samples: what the blocks of params.yaml share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.config import Strict
from components.diffusion.config import DenoiserConfig, refuse_bad_interval
from components.training.optimizers import OptimizerConfig

GUIDANCE, SPAN = "guidance", "span"  # inputs of a student's net, beside the noise level


class StudentConfig(DenoiserConfig):
    """`most_guidance`: the net is trained under guidance scales from 1 to this, which it is told, so that a guided
    evaluation costs one row (Meng et al. 2023, section 3); 1: under none. `guided_levels`: noise levels sigma above the
    first and up to the second at which guidance acts in what it learns; None: all. `regress`: whether the path that it
    learns is the teacher's, or that of the data; without a teacher it is the data's."""

    most_guidance: float = Field(4.0, ge=1, le=50)
    guided_levels: tuple[float, float] | None = None
    regress: Literal["teacher", "data"] = "teacher"
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-4, schedule="cosine", warmup=50)

    @model_validator(mode="after")
    def _has_levels(self) -> StudentConfig:
        refuse_bad_interval(self.guided_levels, "guided_levels")
        return self

    @property
    def is_guided(self) -> bool:
        return self.conditioning != "none" and self.most_guidance > 1

    @property
    def numbers(self) -> tuple[str, ...]:
        return (GUIDANCE,) if self.is_guided else ()


class StudentSettings(Strict):
    """`guidance_scale`: 1 is none; up to the model's `most_guidance`."""

    num_inference_steps: int = Field(2, ge=1, le=128)
    guidance_scale: float = Field(1.0, ge=1, le=50)
