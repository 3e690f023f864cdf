"""Few-step students of the demo's diffusion model against it: same latents, same protocol. The figure is the least
ratio of Fréchet distances at two evaluations. Beside them the model itself, its deep features reused (`reuse`).

    python -m tests.benchmarks.few_step_quality                     # every student, one seed: some 20 minutes of a core
    python -m tests.benchmarks.few_step_quality 0 1 2 consistency   # three seeds of one

What is measured is kept in .cache/few_step_quality, with a sheet of samples for each number of steps.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time

import torch

from components.families import family_class
from components.families.base import Family
from components.few_step.base import TEACHER
from components.training.loop import TrainingConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.rates import Data

FOLDER = digits.ROOT / ".cache" / "few_step_quality"
STEPS, SCALE, OTHER_SCALES = (1, 2, 4, 8), 1.5, (2.0,)
GUIDED = {"most_guidance": 2.0}
STUDENTS: dict[str, tuple[str, dict, int]] = {  # family, changes of its model, training steps: about equal work
    "consistency": ("consistency", {**GUIDED, "stage_steps": 25}, 200),
    "consistency_of_data": ("consistency", {**GUIDED, "stage_steps": 25, "regress": "data"}, 200),
    "consistency_between": ("consistency", {**GUIDED, "guided_levels": [0.2, 5.0], "stage_steps": 25}, 200),
    "consistency_longer": (
        "consistency",
        {"most_guidance": 3.0, "guided_levels": [0.2, 5.0], "stage_steps": 50},
        400,
    ),
    "shortcut": ("shortcut", {**GUIDED, "bootstrap": 0.5, "halvings": 4}, 240),
    "meanflow": ("meanflow", GUIDED, 180),
    "progressive": ("progressive", {**GUIDED, "first_steps": 8, "round_steps": 70}, 210),
    "progressive_at_once": ("progressive", {**GUIDED, "first_steps": 2, "ratio": 4}, 110),
    "dmd2": ("dmd2", {**GUIDED, "num_score_steps": 2, "adversarial": {}}, 110),
}
REUSES = {"reuse_2": 2, "reuse_3": 3}  # of the teacher, which trains no further


@functools.cache
def taught(seed: int) -> tuple[Family, Data]:
    """The demo's diffusion model, trained, and the latents that it was trained on."""
    train, key = digits.data()["train"], "autoencoders.vae"
    vae, _, _ = digits.trained(key, digits.made(key, train, seed), train, seed)
    latents, key = quality.encoded(vae, train), "samplers.ldm"
    teacher, _, _ = digits.trained(key, digits.made(key, latents, seed), latents, seed)
    return quality.with_autoencoder(teacher, vae), latents


def of_teacher(seed: int, **changes: int) -> dict:
    """Figures of the teacher's best candidate, under changes of its settings."""
    teacher, _ = taught(seed)
    candidates = digits.demo().samplers["ldm"].candidates
    found = [
        digits.yardstick().of_sampler(teacher, teacher.Settings(**{**settings, **changes})) for settings in candidates
    ]
    return min(found, key=lambda figures: figures["frechet_distance"])


def student(name: str, seed: int) -> tuple[Family, float]:
    """A trained student, and the CPU seconds that it took."""
    teacher, latents = taught(seed)
    family, changes, steps = STUDENTS[name]
    inherited = {key: getattr(teacher.config, key) for key in family_class(family).inherits[TEACHER]}
    made = quality.made(family, {**inherited, **changes}, latents.info, seed)
    made.receive(TEACHER, teacher)
    began = time.process_time()
    training = TrainingConfig(steps=steps, batch_size=128, report_every=steps)
    made, _, _ = quality.trained(made, latents, training, seed)
    return quality.with_autoencoder(made, teacher), time.process_time() - began


def measure(name: str, seed: int) -> dict:
    """Distances by the number of steps, as shares of the teacher's best; labels and recall beside."""
    best = quality.kept(FOLDER / f"teacher_{seed}.json", lambda: of_teacher(seed))
    if name in REUSES:
        return _beside(of_teacher(seed, reuse=REUSES[name]), best)
    made, seconds = student(name, seed)
    told = {"cpu_seconds": round(seconds), "teacher_distance": best["frechet_distance"]}
    for scale, steps in itertools.product((SCALE, *OTHER_SCALES), STEPS):
        settings = made.Settings(num_inference_steps=steps, guidance_scale=scale)
        if made.why_not(made.config, settings, made.data.outline) is not None:
            continue
        key = f"{steps}" if scale == SCALE else f"{steps}_guided_{scale:g}"
        figures = digits.yardstick().of_sampler(made, settings, FOLDER / f"{name}_{seed}_{key}.png")
        told[f"ratio_{key}"] = figures["frechet_distance"] / best["frechet_distance"]
        told[f"agreement_{key}"] = figures["label_agreement"] - best["label_agreement"]
        told |= {f"{figure}_{key}": figures[figure] for figure in ("frechet_distance", "recall")}
    return {**told, "frechet_distance": told["frechet_distance_2"]}


def _beside(found: dict, best: dict) -> dict:
    """The figures of a candidate of the teacher's and what they are beside its best one's."""
    return {
        **{figure: found[figure] for figure in ("frechet_distance", "recall", "ms_per_image")},
        "teacher_ms": best["ms_per_image"],
        "ratio": found["frechet_distance"] / best["frechet_distance"],
        "agreement": found["label_agreement"] - best["label_agreement"],
    }


def main(argv: list[str] | None = None) -> None:
    names, seeds = digits.asked(argv, [*STUDENTS, *REUSES])
    as_a_worker()
    torch.set_num_threads(1)
    table = digits.table(names, seeds if argv else seeds[:1], FOLDER, measure)
    students = {name: told for name, told in table.items() if name in STUDENTS}
    spared = {name: told for name, told in table.items() if name in REUSES}
    if students:
        best = min(students, key=lambda name: students[name]["ratio_2"])
        emit(
            "few_step_quality",
            students[best]["ratio_2"],
            f"Fréchet distance of {best} at two evaluations / of its teacher's best candidate",
            "<= 1.15, and <= 1.25 at one",
            real=round(digits.floor(), 3),
            table=students,
        )
    if spared:
        best = min(spared, key=lambda name: spared[name]["ratio"])
        emit(
            "step_caching",
            spared[best]["ratio"],
            f"Fréchet distance under {best} / without",
            "<= 1.15 at less time",
            table=spared,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
