"""What each option of diffusion does to the demo's digits: same autoencoder, same steps, same protocol.

    python -m tests.benchmarks.digits_quality                     # the default and a few settings, one seed: minutes
    python -m tests.benchmarks.digits_quality all                 # every option, three seeds
    python -m tests.benchmarks.digits_quality min_snr learned     # those

What is measured is kept in .cache/digits_quality, so that a table can be finished later.
"""

from __future__ import annotations

import functools
import sys

from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker

FOLDER = digits.ROOT / ".cache" / "digits_quality"
HEUN = {"solver": "heun", "num_inference_steps": 12, "spacing": "karras", "guidance_scale": 1.5}

# changes of the demo's model, and the settings that are sampled with beside the demo's candidates
OPTIONS: dict[str, tuple[dict, list[dict]]] = {
    "default": ({}, [HEUN, {**HEUN, "guidance_rescale": 0.7}]),
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
def autoencoder(seed: int):
    train, key = digits.data()["train"], "autoencoders.vae"
    vae, _, _ = digits.trained(key, digits.made(key, train, seed), train, seed)
    return vae, quality.encoded(vae, train)


def measure(option: str, seed: int) -> dict:
    """One training, under each of its settings: the best one's figures, and each setting's distance."""
    changes, more = OPTIONS[option]
    vae, latents = autoencoder(seed)
    key, snapshots = "samplers.ldm", 8 if "guide" in changes else 0
    sampler = digits.made(key, latents, seed, changes)
    sampler, state, seconds = digits.trained(key, sampler, latents, seed, ema_snapshots=snapshots)
    quality.with_autoencoder(sampler, vae)
    found = []
    for number, settings in enumerate([*digits.demo().samplers["ldm"].candidates, *more]):
        picture = FOLDER / f"{option}_{seed}_{number}.png"
        figures = digits.yardstick().of_sampler(sampler, sampler.Settings(**settings), picture)
        found.append(figures | {"settings": settings})
    best = min(found, key=lambda figures: figures["frechet_distance"])
    distances = [figures["frechet_distance"] for figures in found]
    return {**best, "distances": distances, "steps": state.step, "seconds": round(seconds)}


def kept(option: str, seed: int) -> dict:
    return quality.kept(FOLDER / f"{option}_{seed}.json", lambda: measure(option, seed))


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    whole = argv == ["all"]
    options = list(OPTIONS) if whole else (argv or ["default"])
    seeds = digits.SEEDS if argv else digits.SEEDS[:1]
    table = {option: quality.spread([kept(option, seed) for seed in seeds]) for option in options}
    digits.tell(
        "digits_quality",
        table,
        f"Fréchet distance of {{best}}'s best setting, mean of {len(seeds)} seed(s)",
        "within 3 times the real images' distance, label agreement 98 %",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
