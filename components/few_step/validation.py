"""Checkpoint validation of students: what they draw in a few steps, of which their losses say little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.conditioning.text import texts_of_column
from components.families.base import Judge
from components.metrics.figures import Definition, Figures, named
from components.metrics.frechet import Moments, frechet_distance
from components.sampling.requests import Conditions, Request

if TYPE_CHECKING:
    from components.few_step.base import Student

ROWS = 256  # that a checkpoint draws
OTHERS = 1 << 40  # seeds from here on are not evaluation's


def _distance(steps: int) -> Definition:
    told = f"{steps} step{'s' * (steps > 1)}"
    return Definition(
        name=f"frechet_{told.replace(' ', '_')}",
        label=f"Fréchet distance, {told}",
        explanation=f"of up to {ROWS} rows drawn in {told} without guidance, on the judge's features",
        kind="distance",
        better="lower",
    )


DISTANCES = {steps: _distance(steps) for steps in (1, 2, 4)}


@torch.inference_mode()
def step_figures(student: Student, held_out: Mapping[str, Tensor], judge: Judge) -> Figures:
    """Distances to held-out rows by the number of steps, of those that the student can sample with."""
    reals, classifier = student.medium.rows(held_out), judge.nets["classifier"]
    count, real = min(ROWS, len(reals)), Moments.of(classifier.features(reals))
    conditions = student.cycled(count)
    if student.texts:
        conditions = Conditions(prompt=student.prompts_of(texts_of_column(held_out["caption"][:count])))
    found = []
    for steps, definition in DISTANCES.items():
        settings = student.usual_settings.model_copy(update={"num_inference_steps": steps})
        if student.why_not(student.config, settings, student.data.outline) is None:
            rows = student.sample(Request(torch.arange(count) + OTHERS, settings, conditions)).to(reals.device)
            found.append(definition.figure(frechet_distance(Moments.of(classifier.features(rows)), real)))
    return named(*found)
