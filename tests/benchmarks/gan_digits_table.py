"""Every GAN variant on the digits (16x16), the same seconds of one core each, three seeds: one table.

python -m tests.benchmarks.gan_digits_table [VARIANT SEED]

Naming a variant and a seed measures that run alone and keeps it; without names all that is not kept yet is measured,
and the table is told. What is kept, and each run's grid to look at, lies in .cache/gan_digits.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.data import batches
from components.families import FAMILIES
from components.families.base import DataInfo, Family, Sampler
from components.families.gan.base import GAN
from components.images import encode_png, from_uint8, grid
from components.metrics import generation
from components.metrics.modes import collapsed, mode_coverage
from components.metrics.protocol import EvaluateConfig
from components.metrics.quality import Reference, quality
from components.optimizers import OptimizerConfig
from components.sources import DataConfig, digits
from components.training import State, TrainingConfig, fit
from tests.benchmarks.common import emit

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "gan_digits"
SECONDS = 30  # of training, of one core
MOST_STEPS = 10**6  # more than anyone makes in that time
SEEDS = (0, 1, 2)
PROTOCOL = EvaluateConfig(num_samples=500, resamples=20)


def adam(learning_rate: float, first: float = 0.0, second: float = 0.99) -> OptimizerConfig:
    return OptimizerConfig(name="adam", learning_rate=learning_rate, betas=(first, second))


def rates(generator: float, discriminator: float, first: float = 0.0, second: float = 0.99) -> dict:
    return {"generator": adam(generator, first, second), "discriminator": adam(discriminator, first, second)}


# published settings, but for sizes and for learning rates: a run takes a minute, not days
SETTINGS: dict[str, dict] = {
    "dcgan": {"latent_dim": 64, "width": 32},
    "wgan": {
        "latent_dim": 64,
        "width": 32,
        "generator": OptimizerConfig(name="rmsprop", learning_rate=5e-4),
        "discriminator": OptimizerConfig(name="rmsprop", learning_rate=5e-4),
    },
    "wgan_gp": {"latent_dim": 64, "width": 32, **rates(1e-3, 1e-3, 0.0, 0.9)},
    "cgan": {"latent_dim": 64, "width": 32},
    "sagan": {"latent_dim": 64, "width": 8, **rates(1e-3, 2e-3, 0.0, 0.9)},
    "biggan": {"latent_dim": 60, "width": 8, "embedding_dim": 32, **rates(1e-3, 2e-3, 0.0, 0.999)},
    "bigbigan": {"latent_dim": 60, "width": 8, **rates(1e-3, 2e-3, 0.0, 0.999), "encoder": adam(1e-3, 0.0, 0.999)},
    "stylegan2": {"width": 8, "style_dim": 32, "latent_dim": 32, **rates(4e-3, 4e-3)},
    "r3gan": {"width": 12, "blocks": 1, "group_size": 12, "r1": 0.1, "r2": 0.1, **rates(2e-3, 2e-3)},
}
SMALL = {"sagan", "biggan", "bigbigan", "stylegan2", "r3gan"}
BATCH = {name: 32 if name in SMALL else 64 for name in SETTINGS}


class Digits:
    """A split in memory, in the place of components.data.Dataset."""

    def __init__(self, split: str):
        rows = list(digits.read(DataConfig(source="digits", image_size=16), seed=0).splits[split]())
        self.columns = {
            "image": torch.from_numpy(np.stack([row["image"] for row in rows])),
            "label": torch.tensor([int(row["label"]) for row in rows]),
        }

    def __len__(self) -> int:
        return len(self.columns["label"])

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.columns.items()}


@functools.cache
def split(name: str) -> Digits:
    return Digits(name)


INFO = DataInfo(shape=(1, 16, 16), classes=digits.CLASSES)


def made(name: str, config: dict, seed: int) -> Family:
    torch.manual_seed(seed)
    return FAMILIES[name](FAMILIES[name].Config(**config), INFO)


def trained(
    name: str, config: dict, seed: int, steps: int, batch_size: int, seconds: float = math.inf
) -> tuple[Family, State]:
    """A family with its live weights, and the state of its training: `steps` long, or as many CPU seconds."""
    family = made(name, config, seed)
    began = time.process_time()
    state = fit(
        family,
        batches(split("train"), batch_size, seed=seed),
        TrainingConfig(steps=steps, batch_size=batch_size, report_every=min(100, steps), save_every=steps),
        start=None,
        wrap=lambda net, optimizer: (net, optimizer),
        report=lambda step, figures: figures,
        save=lambda state: None,
        leave=lambda step: time.process_time() - began > seconds,
    )
    return family, state


def averaged(family: Family, state: State) -> Family:
    """The family with the average of its kept nets, as a run folder would have it."""
    for name in family.kept:
        family.nets[name].load_state_dict(state.average[name])
    family.nets.eval()
    return family


def judge() -> Family:
    """A classifier, trained once and kept."""
    config, path = {}, FOLDER / "judge.pt"
    if path.exists():
        family = made("judge", config, 0)
        family.nets.load_state_dict(torch.load(path, weights_only=True))
        family.nets.eval()
        return family
    family = averaged(*trained("judge", config, 0, 200, 128))
    torch.save(family.nets.state_dict(), path)
    return family


def measure(name: str, seed: int) -> dict:
    """One run: trained for SECONDS, sampled, measured; its grid is saved."""
    family, state = trained(name, SETTINGS[name], seed, MOST_STEPS, BATCH[name], SECONDS)
    judged = judge()
    columns = [split(name).columns for name in ("train", "test")]
    watched = family.watch(*columns, judged)
    sampler = averaged(family, state)
    found = figures_of(sampler, judged, columns[1]["image"])
    settings = sampler.Settings()
    png = encode_png(grid(sampler.sample(generation.grid_request(sampler, settings, 1)), 10), 3)
    (FOLDER / f"{name}_{seed}.png").write_bytes(png)
    told = ("accuracy_train", "accuracy_held_out", "accuracy_fake", "ndb", "reconstruction", "probe_accuracy")
    return {
        **found,
        **{key: watched[key] for key in told if key in watched},
        "steps": state.step,
        "parameters": sum(p.numel() for p in sampler.nets["generator"].parameters()),
        "all_parameters": sum(p.numel() for p in sampler.nets.parameters()),
    }


@torch.inference_mode()
def figures_of(sampler: Sampler, judged: Family, reference: Tensor) -> dict:
    net = judged.nets["classifier"]
    real = net.features(from_uint8(reference)).double()
    pieces = [
        generation.generate(sampler, request)
        for request in generation.requests(sampler, sampler.Settings(), PROTOCOL.num_samples, 0, 100)
    ]
    features = net.features(torch.cat([piece.images for piece in pieces]))
    labels = torch.cat([piece.labels for piece in pieces]) if sampler.conditional else None
    judged_labels = net.logits(features).argmax(1)
    found = quality(features.double(), Reference.of(real, PROTOCOL), PROTOCOL, labels)
    found |= mode_coverage(judged_labels, len(INFO.classes))
    found["label_agreement"] = None if labels is None else float((judged_labels == labels).double().mean())
    found["ms_per_image"] = generation.ms_per_image([(len(p.images), p.seconds) for p in pieces[1:]])
    found["collapsed"] = collapsed(found, len(INFO.classes))
    return found


def kept(name: str, seed: int) -> dict:
    path = FOLDER / f"{name}_{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(measure(name, seed)))
    return json.loads(path.read_text())


def floor() -> float:
    """The distance of training images, 500 of them, to the held-out ones: a perfect sampler's."""
    net = judge().nets["classifier"]
    with torch.inference_mode():
        train, test = (net.features(from_uint8(split(name).columns["image"])).double() for name in ("train", "test"))
    return quality(train[:500], Reference.of(test, PROTOCOL), PROTOCOL)["frechet_distance"]


def row(name: str) -> dict:
    """The mean over seeds of each figure; Fréchet distance seed by seed too."""
    runs = [kept(name, seed) for seed in SEEDS]
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    means = {key: round(statistics.mean(run[key] for run in runs), 4) for key in numbers}
    return {**means, "frechet_by_seed": [round(run["frechet_distance"], 2) for run in runs],
            "collapsed": [run["collapsed"] for run in runs if run["collapsed"]]}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if argv:
        name, seed = argv
        print(json.dumps(kept(name, int(seed)), indent=1))
        return
    table = {name: row(name) for name in SETTINGS if issubclass(FAMILIES[name], GAN)}
    best = min(table, key=lambda name: table[name]["frechet_distance"])
    emit(
        "gan_digits_table",
        table[best]["frechet_distance"],
        f"Fréchet distance of the best variant ({best}), mean of {len(SEEDS)} seeds",
        "all variants recognisable",
        seconds=SECONDS,
        real=round(floor(), 3),
        table=table,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
