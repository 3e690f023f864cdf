"""The families on tokens against latent diffusion, on the demo's digits: five CPU minutes each on one thread, tokeniser
or autoencoder included, one protocol.

    python -m tests.benchmarks.token_families                # every family, three seeds: an hour of one core
    python -m tests.benchmarks.token_families 0 gpt maskgit  # one seed of those

What is measured is kept in .cache/token_families, with a sheet of samples for each setting.
"""

from __future__ import annotations

import functools
import sys
import time

import torch

from components.config import Strict
from components.families import family_class
from components.families.base import Family
from components.metrics.reconstruction import reconstruction_figures
from components.training.loop import TrainingConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker
from tests.benchmarks.rates import Data

FOLDER = digits.ROOT / ".cache" / "token_families"
ROWS = 297  # behind a likelihood
BUDGET, TOKENISER = 300.0, 75.0  # CPU seconds of the whole and of the tokeniser
GRID = {"latent_channels": 4, "widths": [32, 64, 64], "codebook": {"name": "fsq", "levels": [5, 5, 5, 5]}}
SCALES = {**GRID, "codebook": {"name": "scales", "sides": [1, 2, 3, 4], "size": 256}}
TOKENISERS = {"gpt": GRID, "maskgit": GRID, "var": SCALES}
TRANSFORMER = {"width": 128, "depth": 4, "heads": 4}
DRAWS = [{"guidance_scale": scale, "top_p": share} for scale in (1.5, 3.0) for share in (0.9, 1.0)]
MASKED = [{"guidance_scale": scale, "choice_temperature": heat} for scale in (1.5, 3.0) for heat in (1.0, 4.5)]
SETTINGS = {"gpt": DRAWS, "maskgit": MASKED, "var": DRAWS}
# as many steps as a core makes in the budget; the rate's schedule ends with the last
STEPS = {"tokeniser": 550, "gpt": 2200, "maskgit": 2200, "var": 1400, "latent_diffusion": 1}


def budgeted(family: Family, data: Data, steps: int, batch_size: int, seed: int, seconds: float) -> tuple[Family, dict]:
    """A training of so many steps, or of as many as fit into CPU seconds."""
    training = TrainingConfig(steps=steps, batch_size=batch_size, precision="float32", report_every=100)
    family, state, took = quality.trained(family, data, training, seed, seconds, time.process_time)
    return family, {"steps": state.step, "cpu_seconds": round(took)}


def tokeniser(name: str, seed: int) -> tuple[Family, Data, dict]:
    return _tokeniser(TOKENISERS[name]["codebook"]["name"], seed)


@functools.cache
def _tokeniser(codebook: str, seed: int) -> tuple[Family, Data, dict]:
    """The tokeniser, the training set's tokens and those of the images moved by a pixel, and figures of both."""
    data = digits.data()
    model = next(model for model in TOKENISERS.values() if model["codebook"]["name"] == codebook)
    vae = quality.made("vae", model, data["train"].info, seed)
    vae, told = budgeted(vae, data["train"], STEPS["tokeniser"], 128, seed, TOKENISER)
    images = quality.MEDIUM.to_floats(data["test"].columns["image"])
    features = digits.yardstick().judge.nets["classifier"].features
    made = quality.tokenised(vae, data["train"], shifts=1)
    told |= {
        name: figure.value
        for name, figure in reconstruction_figures([(images, vae.reconstruct(images))], features).items()
    }
    return vae, made, told | {name: value for name, (value,) in made.info.statistics.items()}


def of_tokens(name: str, seed: int) -> dict:
    """One token family, under each of its settings: all figures of the best, each setting's distance."""
    vae, tokens, told = tokeniser(name, seed)
    sampler = quality.made(name, TRANSFORMER, tokens.info, seed)
    left = BUDGET - told["cpu_seconds"]
    sampler, trained = budgeted(sampler, tokens, STEPS[name], 128, seed, left)
    quality.with_autoencoder(sampler, vae)
    found = [measured(sampler, settings, f"{name}_{seed}_{number}") for number, settings in enumerate(SETTINGS[name])]
    best = min(found, key=lambda figures: figures["frechet_distance"])
    return {**best, "each": found, "trained": trained, "tokeniser": told, "bits": digits.bits(sampler, ROWS)}


def measured(sampler: Family, settings: dict, picture: str) -> dict:
    chosen: Strict = family_class(sampler.__class__.__module__.rpartition(".")[2]).Settings(**settings)
    return digits.yardstick().of_sampler(sampler, chosen, FOLDER / f"{picture}.png") | {"settings": settings}


def of_latents(seed: int) -> dict:
    """The demo's latent diffusion under the same budget."""
    train = digits.data()["train"]
    vae = digits.made("autoencoders.vae", train, seed)
    vae, told = budgeted(vae, train, 10_000, 128, seed, TOKENISER)
    latents = quality.encoded(vae, train)
    sampler = digits.made("samplers.ldm", latents, seed)
    sampler, trained = budgeted(sampler, latents, 10_000, 128, seed, BUDGET - told["cpu_seconds"])
    quality.with_autoencoder(sampler, vae)
    candidates = digits.demo().samplers["ldm"].candidates
    found = [measured(sampler, settings, f"ldm_{seed}_{number}") for number, settings in enumerate(candidates)]
    return {**min(found, key=lambda figures: figures["frechet_distance"]), "trained": trained, "tokeniser": told}


def measure(name: str, seed: int) -> dict:
    return of_latents(seed) if name == "latent_diffusion" else of_tokens(name, seed)


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    torch.set_num_threads(1)  # CPU seconds are what is shared out, and threads that wait for each other burn them
    names, seeds = digits.asked(argv, list(STEPS)[1:])
    table = digits.table(names, seeds, FOLDER, measure)
    digits.tell(
        "token_families",
        table,
        f"Fréchet distance of {{best}}'s best setting, mean of {len(seeds)} seed(s), five CPU minutes each",
        "98 % label agreement of each token family",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
