"""A cascade of 8 -> 16 pixels against diffusion of 16 directly, on the demo's digits, each net as many steps; and the
noise on what the base hands on, swept.

    python -m tests.benchmarks.cascade_sweep      # three seeds
    python -m tests.benchmarks.cascade_sweep 0    # one seed: some five CPU minutes

What is measured is kept in .cache/cascade_sweep, with a sheet of samples for each setting.
"""

from __future__ import annotations

import sys
import time

import torch

from components.families.base import Family
from components.training.loop import TrainingConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker, emit

FOLDER = digits.ROOT / ".cache" / "cascade_sweep"
STEPS = 800
BACKBONE = {"backbone": {"widths": [32, 64], "attention": [False, True], "context_dim": 32}}
SETTINGS = {"solver": "unipc", "num_inference_steps": 8, "guidance_scale": 1.5, "spacing": "karras"}
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
MODELS = {"latent_diffusion": BACKBONE, "cascade": {"base": BACKBONE, "up1": BACKBONE}}


def trained(name: str, seed: int) -> tuple[Family, float]:
    data, began = digits.data()["train"], time.process_time()
    family = quality.made(name, MODELS[name], data.info, seed)
    training = TrainingConfig(steps=STEPS, batch_size=64, precision="float32", report_every=200)
    family, _, _ = quality.trained(family, data, training, seed)
    return family, time.process_time() - began


def settings_of(name: str, level: float) -> dict:
    return SETTINGS if name == "latent_diffusion" else {"base": SETTINGS, "up1": {**SETTINGS, "augmentation": level}}


def measure(name: str, seed: int) -> dict:
    """Figures of a model, those of each level of augmentation where it has one, and what training cost."""
    sampler, seconds = trained(name, seed)
    found = {}
    for level in LEVELS if name == "cascade" else LEVELS[:1]:
        picture = FOLDER / f"{name}_{seed}_{level}.png"
        found[level] = digits.yardstick().of_sampler(sampler, sampler.Settings(**settings_of(name, level)), picture)
        print(name, seed, level, found[level]["frechet_distance"], flush=True)
    return {"cpu_seconds": seconds, "levels": {level: quality.rounded(one) for level, one in found.items()}}


def mean(runs: list[dict], level: str, figure: str = "frechet_distance") -> float:
    return sum(run["levels"][level][figure] for run in runs) / len(runs)


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    torch.set_num_threads(1)
    names, seeds = digits.asked(argv, MODELS)
    runs = digits.runs(names, seeds, FOLDER, measure)
    direct = mean(runs["latent_diffusion"], "0.0")
    sweep = {level: round(mean(runs["cascade"], level), 3) for level in map(str, LEVELS)}
    best = min(sweep, key=sweep.get)
    what = f"Fréchet distance of the cascade over that of direct 16x16, augmentation {best}, {len(seeds)} seed(s)"
    target = "at most 1.2, with a minimum of the sweep above 0"
    emit("cascade_sweep", round(sweep[best] / direct, 3), what, target, direct=direct, sweep=sweep, runs=runs)


if __name__ == "__main__":
    main(sys.argv[1:])
