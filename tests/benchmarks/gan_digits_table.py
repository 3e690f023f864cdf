"""Every GAN variant on the digits (16x16), the same seconds of one core each, three seeds: one table.

python -m tests.benchmarks.gan_digits_table [VARIANT SEED]

Naming a variant and a seed measures that run alone and keeps it; without names all that is not kept yet is measured,
and the table is told. What is kept, and each run's grid to look at, lies in .cache/gan_digits.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from components.families import family_class
from components.gan.base import GAN
from components.metrics.figures import values
from components.training.loop import TrainingConfig
from components.training.optimizers import OptimizerConfig
from tests.benchmarks import digits, quality

FOLDER = digits.ROOT / ".cache" / "gan_digits"
SECONDS = 120  # of training, of one core
MOST_STEPS = 10**6  # more than anyone makes in that time
VALIDATED = ("accuracy_train", "accuracy_held_out", "accuracy_fake", "ndb", "reconstruction", "probe_accuracy")


def adam(learning_rate: float, first: float = 0.0, second: float = 0.99) -> OptimizerConfig:
    return OptimizerConfig(name="adam", learning_rate=learning_rate, betas=(first, second))


def rates(generator: float, discriminator: float, first: float = 0.0, second: float = 0.99) -> dict:
    return {"generator": adam(generator, first, second), "discriminator": adam(discriminator, first, second)}


# one critic step instead of two, or the generator makes too few in the time
BIG = {"latent_dim": 60, "width": 8, "num_critic_steps": 1, **rates(1e-3, 2e-3, 0.0, 0.999)}
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
    "biggan": {**BIG, "embedding_dim": 32},
    "bigbigan": {**BIG, "latent_dim": 24, "encoder": adam(2e-3, 0.0, 0.999)},
    "stylegan2": {"width": 8, "style_dim": 32, "latent_dim": 32, **rates(4e-3, 4e-3)},
    "r3gan": {"width": 12, "blocks": 1, "group_size": 12, "r1": 0.1, "r2": 0.1, **rates(2e-3, 2e-3)},
}
SMALL = {"sagan", "biggan", "bigbigan", "stylegan2", "r3gan"}
BATCH = {name: 32 if name in SMALL else 64 for name in SETTINGS}


def measure(name: str, seed: int) -> dict:
    """One run: trained for SECONDS, sampled, measured; its grid is saved."""
    train, test, yardstick = digits.data()["train"], digits.data()["test"], digits.yardstick()
    family = quality.made(name, SETTINGS[name], train.info, seed)
    training = TrainingConfig(steps=MOST_STEPS, batch_size=BATCH[name], save_every=MOST_STEPS)
    sampler, state, _ = quality.trained(family, train, training, seed, SECONDS, time.process_time)
    validated = values(sampler.validate(train.columns, test.columns, yardstick.judge))
    return {
        **yardstick.of_sampler(sampler, sampler.Settings(), FOLDER / f"{name}_{seed}.png"),
        **{key: validated[key] for key in VALIDATED if key in validated},
        "steps": state.step,
        "parameters": sum(p.numel() for p in sampler.nets["generator"].parameters()),
        "all_parameters": sum(p.numel() for p in sampler.nets.parameters()),
    }


def kept(name: str, seed: int) -> dict:
    return quality.kept(FOLDER / f"{name}_{seed}.json", lambda: measure(name, seed))


def main(argv: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    if argv:
        name, seed = argv
        print(json.dumps(kept(name, int(seed)), indent=1))
        return
    variants = [name for name in SETTINGS if issubclass(family_class(name), GAN)]
    table = {name: quality.spread([kept(name, seed) for seed in digits.SEEDS]) for name in variants}
    digits.tell(
        "gan_digits_table",
        table,
        f"Fréchet distance of the best variant ({{best}}), mean of {len(digits.SEEDS)} seeds",
        "all variants recognisable",
        seconds=SECONDS,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
