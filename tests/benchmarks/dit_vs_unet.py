"""A transformer against the U-Net as the backbone of the demo's latent diffusion: equal CPU seconds of training on one
thread, held-out denoising loss and distance, three seeds. The transformer also with each lever of its training by
itself: tokens that bypass blocks, with and without dense steps at the end, and tokens aligned to what a judge sees that
learned without labels, or one of labels, another than the one that measures. A teacher's own training is not counted,
and what it sees of the images lies beside their latents, as `encode` puts it there.

    python -m tests.benchmarks.dit_vs_unet              # two backbones, three seeds: some twenty minutes of one core
    python -m tests.benchmarks.dit_vs_unet levers       # the transformer plain and with each lever: some fifty
    python -m tests.benchmarks.dit_vs_unet 0 dit_align  # one seed of one

What is measured is kept in .cache/dit_vs_unet, with a sheet of samples each.
"""

from __future__ import annotations

import functools
import sys
import time

import torch

from components.data.info import TEACHER
from components.evaluation.held_out import HeldOutRows
from components.families.base import Family
from components.metrics.figures import values
from components.training.loop import TrainingConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import as_a_worker
from tests.benchmarks.rates import Data

FOLDER = digits.ROOT / ".cache" / "dit_vs_unet"
SECONDS = 180.0  # of CPU, for each net
DIT = {"name": "dit", "patch": 2, "width": 96, "depth": 4, "heads": 3}  # 16 tokens: the latents are 8x8
ROUTE = {"share": 0.5, "blocks": [1, 3]}
DENSE_FROM = 900  # steps, some two thirds of those that SECONDS hold on two cores of an AMD EPYC
ALIGN = {"layer": 2, "weight": 0.5}
SETTINGS = {"solver": "dpmpp_2m", "num_inference_steps": 15, "guidance_scale": 1.5}
ADAMW = {"learning_rate": 3e-3, "schedule": "constant", "warmup": 50}
MUON = {**ADAMW, "name": "muon", "weight_decay": 0.01}
VARIANTS = {  # changes of the demo's model; the rate stays, so that no schedule knows the number of steps
    "unet": {"optimizer": ADAMW},
    "dit": {"backbone": DIT, "optimizer": ADAMW},
    "unet_muon": {"optimizer": MUON},
    "dit_muon": {"backbone": DIT, "optimizer": MUON},
    "dit_route": {"backbone": {**DIT, "route": ROUTE}, "optimizer": ADAMW},
    "dit_route_then_dense": {"backbone": {**DIT, "route": {**ROUTE, "steps": DENSE_FROM}}, "optimizer": ADAMW},
    "dit_align": {"backbone": DIT, "align": ALIGN, "optimizer": ADAMW},
    "dit_align_labels": {"backbone": DIT, "align": ALIGN, "optimizer": ADAMW},
}
LEVERS = [name for name in VARIANTS if name.startswith(("dit_route", "dit_align"))]


@functools.cache
def autoencoder(seed: int) -> Family:
    train, key = digits.data()["train"], "autoencoders.vae"
    return digits.trained(key, digits.made(key, train, seed), train, seed)[0]


def latents(variant: str, seed: int) -> Data:
    """Of the training images, beside what the variant's teacher sees of them, if it has one; the held-out images are
    encoded as needed."""
    judge = teacher("labels" in variant) if "align" in VARIANTS[variant] else None
    return quality.encoded(autoencoder(seed), digits.data()["train"], judge)


@functools.cache
def teacher(labelled: bool) -> Family:
    """A judge that measures nothing here; without labels it tells which way round an image is, and how it looks."""
    train, key = digits.data()["train"], "judges.judge"
    info = train.info if labelled else train.info.model_copy(update={"classes": ()})
    data = Data(info, train.columns)
    judge, _, _ = digits.trained(key, digits.made(key, data, 100), data, 100)
    return judge


def made(variant: str, train: Data, seed: int) -> Family:
    """A net with its initial weights, for latents as `latents` gives them, and, where it is aligned, its teacher."""
    if "align" not in VARIANTS[variant]:
        return digits.made("samplers.ldm", train, seed, VARIANTS[variant])
    sampler = digits.made("samplers.ldm", train, seed, VARIANTS[variant])
    sampler.receive(TEACHER, teacher("labels" in variant))
    return sampler


def measure(variant: str, seed: int) -> dict:
    """Figures of one net after SECONDS of CPU."""
    vae, train, test = autoencoder(seed), latents(variant, seed), digits.data()["test"]
    sampler = made(variant, train, seed)
    training = TrainingConfig(steps=100_000, batch_size=128, precision="float32", report_every=100)
    sampler, state, _ = quality.trained(sampler, train, training, seed, SECONDS, time.process_time)
    quality.with_autoencoder(sampler, vae)
    losses = values(
        HeldOutRows(sampler, train, test, training.model_copy(update={"steps": 400})).figures(sampler, False)
    )
    figures = digits.yardstick().of_sampler(sampler, sampler.Settings(**SETTINGS), FOLDER / f"{variant}_{seed}.png")
    told = {name: losses[name] for name in ("held_out_loss", "training_loss")}
    parameters = sum(parameter.numel() for parameter in sampler.nets["denoiser"].parameters())
    return {**figures, **told, "steps": state.step, "parameters": parameters}


def table(variants: list[str], seeds: list[int]) -> dict[str, dict]:
    """By variant, the means over the seeds; what is measured already is read."""
    as_a_worker()
    torch.set_num_threads(1)  # CPU seconds are what is shared out, and threads that wait for each other burn them
    return digits.table(variants, seeds, FOLDER, measure)


def main(argv: list[str] | None = None) -> None:
    words = [name for word in argv or [] for name in (["dit", *LEVERS] if word == "levers" else [word])]
    variants, seeds = digits.asked(words, ["unet", "dit"])
    what = f"Fréchet distance of {{best}}, mean of {len(seeds)} seed(s), {SECONDS:.0f} CPU seconds each"
    digits.tell("dit_vs_unet", table(variants, seeds), what, "the transformer within the U-Net's seeds")


if __name__ == "__main__":
    main(sys.argv[1:])
