"""How many channels a group of a norm should have: a narrow diffusion on the digits' pixels and the demo's U-Net, at
equal steps and seeds. A group of one channel takes away what the noise level's embedding adds to that channel.

    python -m tests.benchmarks.norm_groups            # two seeds
    python -m tests.benchmarks.norm_groups 0          # those seeds

What is measured is kept in .cache/norm_groups, so that a table can be finished later.
"""

from __future__ import annotations

import functools
import sys

from components.training.loop import TrainingConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker
from tests.benchmarks.digits_quality import autoencoder

FOLDER = digits.ROOT / ".cache" / "norm_groups"
CHANNELS = (1, 4, 8, 16)  # a group of the narrowest norms
PIXELS = {"widths": [32, 32], "attention": [False, True]}
PIXEL_STEPS = 400
SETTINGS = {"solver": "dpmpp_2m", "num_inference_steps": 15}
SEEDS = digits.SEEDS[:2]


def pixels(channels: int, seed: int) -> dict:
    train = digits.data()["train"]
    backbone = {**PIXELS, "norm_groups": PIXELS["widths"][0] // channels}
    sampler = quality.made("latent_diffusion", {"backbone": backbone}, train.info, seed)
    training = TrainingConfig(steps=PIXEL_STEPS, batch_size=64, report_every=100, save_every=PIXEL_STEPS)
    sampler, state, seconds = quality.trained(sampler, train, training, seed)
    return _measured(f"pixels_{channels}_{seed}", sampler, 1.0) | {"steps": state.step, "seconds": round(seconds)}


def demo(channels: int, seed: int) -> dict:
    vae, latents = autoencoder(seed)
    backbone = digits.demo().samplers["ldm"].model["backbone"]
    changed = {"backbone": {**backbone, "norm_groups": backbone["widths"][0] // channels}}
    sampler = digits.made("samplers.ldm", latents, seed, changed)
    sampler, state, seconds = digits.trained("samplers.ldm", sampler, latents, seed)
    quality.with_autoencoder(sampler, vae)
    return _measured(f"demo_{channels}_{seed}", sampler, 1.5) | {"steps": state.step, "seconds": round(seconds)}


def _measured(name: str, sampler, guidance_scale: float) -> dict:
    settings = sampler.Settings(**SETTINGS, guidance_scale=guidance_scale)
    return digits.yardstick().of_sampler(sampler, settings, FOLDER / f"{name}.png")


NETS = {"pixels": pixels, "demo": demo}


def main(argv: list[str] | None = None) -> None:
    as_a_worker()
    seeds = [int(seed) for seed in argv or SEEDS]
    table = {}
    for name, measure in NETS.items():
        for channels in CHANNELS:
            runs = [
                quality.kept(FOLDER / f"{name}_{channels}_{seed}.json", functools.partial(measure, channels, seed))
                for seed in seeds
            ]
            table[f"{name}, {channels} channels a group"] = quality.spread(runs)
    digits.tell(
        "norm_groups",
        table,
        f"Fréchet distance of {{best}}, mean of {len(seeds)} seed(s)",
        "4 channels a group or more under a third of the distance of 1 on pixels",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
