"""Which autoencoder gives the better U-Net: variants of its training on the digits (16x16), each followed by the demo's
U-Net on its latents with the same steps, three seeds: one table.

python -m tests.benchmarks.autoencoder_ablation [VARIANT SEED]

Naming a variant and a seed measures that run alone and keeps it; without names all that is not kept yet is measured,
and the table is told. What is kept, and each run's grid to look at, lies in .cache/autoencoder_ablation.
"""

from __future__ import annotations

import json
import sys

import torch

from components.evaluation import generation
from components.metrics.figures import values
from tests.benchmarks import digits, quality

FOLDER = digits.ROOT / ".cache" / "autoencoder_ablation"
PERCEPTUAL = {"perceptual": {"weight": 0.1}}
ADVERSARIAL = {"adversarial": {"start": 100, "weight": 0.1}}
VARIANTS: dict[str, dict] = {  # beside params.yaml's own autoencoder
    "plain": {},
    "kl_tenfold": {"kl_weight": 0.1},
    "perceptual": PERCEPTUAL,
    "adversarial": {**PERCEPTUAL, **ADVERSARIAL},
    "equivariance": {"equivariance": {"smallest": 0.5}},
    "codebook": {"codebook": {"size": 256}},
}


def measure(variant: str, seed: int) -> dict:
    """One run: both trained, sampled, measured; the samples' grid is saved."""
    train, test, yardstick = digits.data()["train"], digits.data()["test"], digits.yardstick()
    key = "autoencoders.vae"
    vae = digits.made(key, train, seed, VARIANTS[variant])
    if vae.config.perceptual:
        vae.receive("judge", yardstick.judge)
    vae, _, _ = digits.trained(key, vae, train, seed)
    validated = values(vae.validate(test.columns, test.columns, yardstick.judge))
    key, latents = "samplers.ldm", quality.encoded(vae, train)
    sampler, _, _ = digits.trained(key, digits.made(key, latents, seed), latents, seed)
    quality.with_autoencoder(sampler, vae)
    _, settings = generation.weights_and_settings(digits.demo().samplers["ldm"].candidates[0])
    picture = FOLDER / f"{variant}_{seed}.png"
    return {**validated, **yardstick.of_sampler(sampler, sampler.Settings(**settings), picture)}


def kept(variant: str, seed: int) -> dict:
    return quality.kept(FOLDER / f"{variant}_{seed}.json", lambda: measure(variant, seed))


def main(argv: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    if argv:
        variant, seed = argv
        print(json.dumps(kept(variant, int(seed)), indent=1))
        return
    table = {variant: quality.spread([kept(variant, seed) for seed in digits.SEEDS]) for variant in VARIANTS}
    digits.tell(
        "autoencoder_ablation",
        table,
        f"Fréchet distance of the U-Net on the best autoencoder ({{best}}), mean of {len(digits.SEEDS)} seeds",
        "which autoencoder is best",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
