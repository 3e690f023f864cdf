"""Images a second at batch 100 of a student at two evaluations against the demo's best candidate, nets of one size;
beside them the demo's candidates with their deep features reused at every second or third evaluation.

python -m tests.benchmarks.few_step_speed
"""

from __future__ import annotations

import statistics
import time

import torch

from components.config import Strict
from components.families import family_class
from components.families.base import Sampler
from components.sampling.requests import Conditions, Request
from tests.benchmarks import digits
from tests.benchmarks.common import as_a_worker, emit
from tests.infra.champion import device, untrained

ROWS, REPEATS = 100, 5
STEPS = (1, 2, 4, 8)
REUSES = (1, 2, 3)


def samplers() -> tuple[Sampler, Sampler]:
    """The demo's diffusion model and a consistency model of the same net, untrained: weights cost nothing."""
    teacher = untrained()
    kind = family_class("consistency")
    student = kind(kind.Config(backbone=teacher.config.backbone), teacher.data)
    for sampler in (teacher, student):
        sampler.nets.requires_grad_(False).eval().to(device())
    return teacher, student


def rate(sampler: Sampler, settings: Strict) -> float:
    """Images a second at batches of ROWS, the median of REPEATS."""
    request = Request(torch.arange(ROWS), settings, Conditions(label=torch.arange(ROWS) % sampler.num_classes))
    sampler.sample(request)  # warm
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        sampler.sample(request).cpu()
        seconds.append(time.perf_counter() - began)
    return ROWS / statistics.median(seconds)


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    teacher, student = samplers()
    candidates = digits.demo().samplers["ldm"].candidates
    teachers = {
        every: [round(rate(teacher, teacher.Settings(**settings, reuse=every)), 1) for settings in candidates]
        for every in REUSES
    }
    students = {
        steps: round(rate(student, student.Settings(num_inference_steps=steps, guidance_scale=1.5)), 1)
        for steps in STEPS
    }
    emit(
        "few_step_speed",
        round(students[2] / teachers[1][0], 2),
        f"images/s at batch {ROWS}, student at 2 evaluations / the demo's first candidate",
        ">= 8",
        students=students,
        **{
            f"teachers_reuse_{every}": dict(zip(map(str, candidates), rates, strict=True))
            for every, rates in teachers.items()
        },
    )


if __name__ == "__main__":
    main()
