"""Every model with a likelihood on the demo's digits: bits per dimension of held-out and of training images beside
distance and agreement, equal CPU seconds each on one thread, one protocol.

    python -m tests.benchmarks.bits_per_dim_table                  # every model, three seeds
    python -m tests.benchmarks.bits_per_dim_table 0 glow pixelcnn  # one seed of those

What is measured is kept in .cache/bits_per_dim, with a sheet of samples for each model.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import torch

from components.data.dataset import batches
from components.families import family_class
from components.families.base import Family
from components.likelihood.contract import bits_figures
from components.training.loop import TrainingConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker

FOLDER = digits.ROOT / ".cache" / "bits_per_dim"
BUDGET = 120.0  # CPU seconds


class Entry(NamedTuple):
    """A model: its family and config, what it samples with, and about as many steps as a core makes in the budget: the
    rate's schedule ends with the last."""

    family: str
    model: dict
    steps: int
    settings: dict = {}
    rows: int = 500


MODELS = {
    "realnvp": Entry("realnvp", {"scales": 2, "width": 32, "blocks": 1}, 600),
    "glow": Entry("glow", {"scales": 3, "steps": 6, "width": 64}, 900),
    "tarflow": Entry("tarflow", {"width": 64, "flows": 4, "layers": 2}, 500),
    "pixelcnn": Entry("pixelcnn", {"width": 32, "blocks": 6, "dropout": 0.2}, 280),
    "vae": Entry("vae", {"widths": [32, 64], "reconstruction": "logistic", "kl_weight": 1.0, "density": {}}, 500),
    "pixel_diffusion": Entry(
        "latent_diffusion",
        {"backbone": {"name": "unet", "widths": [32, 64], "attention": [False, True]}, "label_dropout": 0.1},
        350,
        {"solver": "dpmpp_2m", "num_inference_steps": 15, "guidance_scale": 1.5},
        rows=100,
    ),
}


def measure(name: str, seed: int) -> dict:
    """One model after the budget: bits, distance, agreement, parameters, steps."""
    entry, data = MODELS[name], digits.data()["train"]
    family = quality.made(entry.family, entry.model, data.info, seed)
    family.begin(lambda: next(batches(data, 64, seed=seed)))
    training = TrainingConfig(
        steps=entry.steps, batch_size=64, precision="float32", report_every=100, save_every=entry.steps, clip_norm=1.0
    )
    family, state, took = quality.trained(family, data, training, seed, BUDGET, time.process_time)
    settings = family_class(entry.family).Settings(**entry.settings)
    told = digits.yardstick().of_sampler(family, settings, FOLDER / f"{name}_{seed}.png")
    kept = sum(parameter.numel() for net in family.kept for parameter in family.nets[net].parameters())
    return (
        told
        | bits(family, entry.rows)
        | {
            "steps": state.step,
            "cpu_seconds": round(took),
            "parameters": kept,
            "kind": f"{family.likelihood.kind}, dequantisation {family.likelihood.dequantisation}",
        }
    )


def bits(family: Family, most: int) -> dict[str, float]:
    """Bits per dimension of held-out and of training images, evenly spread."""
    rows = []
    for split in ("test", "train"):
        columns, count = digits.data()[split].columns, min(most, len(digits.data()["test"]))
        numbers = torch.arange(count) * len(columns["label"]) // count
        rows.append((quality.MEDIUM.to_floats(columns["image"][numbers]), columns["label"][numbers]))
    return {name: figure.value for name, figure in bits_figures(family.likelihood, *rows).items()}


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    torch.set_num_threads(1)  # CPU seconds are what is shared out
    names, seeds = digits.asked(argv, MODELS)
    table = digits.table(names, seeds, FOLDER, measure)
    digits.tell(
        "bits_per_dim_table",
        table,
        f"Fréchet distance of {{best}}, mean of {len(seeds)} seed(s), {BUDGET:.0f} CPU seconds each",
        "PixelCNN++ below Glow below RealNVP in bits; diffusion below flows in distance",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
