"""What each option of diffusion does to the demo's digits: same autoencoder, same steps, same protocol.

    python -m tests.benchmarks.digits_quality                     # the default and a few settings, one seed: minutes
    python -m tests.benchmarks.digits_quality all                 # every option, three seeds
    python -m tests.benchmarks.digits_quality min_snr learned     # those

What is measured is kept in .cache/digits_quality, so that a table can be finished later.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import torch

from components.metrics.protocol import EvaluateConfig
from components.training import TrainingConfig
from pipelines import params
from tests.benchmarks import quality
from tests.benchmarks.common import as_a_worker, emit

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "digits_quality"
SEEDS = (0, 1, 2)
PROTOCOL = EvaluateConfig(num_samples=500, batch_size=100, resamples=50)
HEUN = {"solver": "heun", "num_inference_steps": 12, "spacing": "karras", "guidance_scale": 1.5}

# changes of the demo's model, and the settings that are sampled with beside the demo's candidates
OPTIONS: dict[str, tuple[dict, list[dict]]] = {
    "default": ({}, [{**HEUN, "guidance_interval": [0.2, 5.0]}, {**HEUN, "guidance_rescale": 0.7}]),
    "uniform_times": ({"times": {"density": "uniform"}}, []),
    "min_snr": ({"weighting": {"name": "min_snr"}}, []),
    "learned": ({"weighting": {"name": "learned"}}, []),
    "v_cosine": ({"objective": "v", "schedule": {"name": "cosine"}, "times": {"density": "uniform"}}, []),
    "v_zero_snr": (
        {
            "objective": "v",
            "schedule": {"name": "scaled_linear", "zero_terminal_snr": True},
            "times": {"density": "uniform"},
        },
        [],
    ),
    "edm": ({"objective": "edm"}, []),
    "autoguided": ({"guide": {"at": 0.25}}, [{**HEUN, "guidance": "autoguidance"}]),
}


@functools.cache
def demo() -> params.Params:
    return params.load(ROOT / params.DEFAULT)


@functools.cache
def data() -> dict[str, quality.Data]:
    return quality.read(demo().data, demo().seed)


def block(key: str, split: quality.Data, seed: int, model: dict | None = None, **training):
    """A block of params.yaml, trained with changes."""
    one = params.train_block(demo(), key)
    config = TrainingConfig(**{**one.training.model_dump(), **training})
    return quality.trained(one.family, {**one.model, **(model or {})}, split, config, seed)


@functools.cache
def yardstick() -> quality.Yardstick:
    judge, _, _ = block("judges.judge", data()["train"], 0)
    return quality.Yardstick(judge, data()["test"], PROTOCOL)


@functools.cache
def autoencoder(seed: int):
    vae, _, _ = block("autoencoders.vae", data()["train"], seed)
    return vae, quality.encoded(vae, data()["train"])


def measure(option: str, seed: int) -> dict:
    """One training, under each of its settings: the best one's figures, and each setting's distance."""
    changes, more = OPTIONS[option]
    vae, latents = autoencoder(seed)
    snapshots = 8 if "guide" in changes else 0
    sampler, state, seconds = block("samplers.ldm", latents, seed, changes, ema_snapshots=snapshots)
    quality.with_autoencoder(sampler, vae)
    found = []
    for number, settings in enumerate([*demo().samplers["ldm"].candidates, *more]):
        picture = FOLDER / f"{option}_{seed}_{number}.png"
        found.append(yardstick().of_sampler(sampler, sampler.Settings(**settings), picture) | {"settings": settings})
    best = min(found, key=lambda figures: figures["frechet_distance"])
    distances = [figures["frechet_distance"] for figures in found]
    return {**best, "distances": distances, "steps": state.step, "seconds": round(seconds)}


def kept(option: str, seed: int) -> dict:
    path = FOLDER / f"{option}_{seed}.json"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(quality.rounded(measure(option, seed))))
    return json.loads(path.read_text())


def floor() -> float:
    """The distance of training images, as many as there are samples, to the held-out ones: a perfect sampler's."""
    train = data()["train"]
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: PROTOCOL.num_samples]
    return yardstick().of_images(train.columns["image"][rows], None)["frechet_distance"]


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    whole = argv == ["all"]
    options = list(OPTIONS) if whole else (argv or ["default"])
    seeds = SEEDS if argv else SEEDS[:1]
    table = {option: quality.spread([kept(option, seed) for seed in seeds]) for option in options}
    best = min(table, key=lambda option: table[option]["frechet_distance"])
    emit(
        "digits_quality",
        table[best]["frechet_distance"],
        f"Fréchet distance of {best}'s best setting, mean of {len(seeds)} seed(s)",
        "within 3 times the real images' distance, label agreement 98 %",
        real=round(floor(), 3),
        table=table,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
