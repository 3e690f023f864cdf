"""One model of each paradigm on the demo's digits, equal CPU seconds of training each on one thread, one protocol: what
the table in docs/PARADIGMS.md is made of.

    python -m tests.benchmarks.paradigms                  # every model, three seeds: some three hours of one core
    python -m tests.benchmarks.paradigms 0 glow pixelcnn  # one seed of those
    python -m tests.benchmarks.paradigms --table [FOLDER] # that table, of what is measured by now

What is measured is kept in .cache/paradigms, with a sheet of samples for each model. An autoencoder or tokeniser takes
a third of its model's seconds, and so does the teacher of a student.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from components.config import Strict
from components.evaluation import generation
from components.families import family_class
from components.families.base import Family, Sampler
from components.few_step.base import TEACHER
from components.metrics.probe import probe_accuracy
from components.training.loop import State, TrainingConfig
from components.training.metric_averages import NonFiniteError
from tests.benchmarks import digits, gan_digits_table, quality, token_families
from tests.benchmarks.common import as_a_worker
from tests.benchmarks.paradigms_table import markdown
from tests.benchmarks.rates import Data

FOLDER = digits.ROOT / ".cache" / "paradigms"
BUDGET = 120.0  # CPU seconds
FIRST_PART = 1 / 3  # of them for what a model on latents or tokens stands on, and for a teacher
ROWS = 500  # behind a likelihood


class Entry(NamedTuple):
    """A model: its paradigm, its family and config, about as many steps as a core makes in the budget (the rate's
    schedule ends with the last), what it samples with, what it is trained on, and which of the models teaches it."""

    paradigm: str
    family: str
    model: dict
    steps: int
    settings: dict = {}
    on: Literal["pixels", "latents", "tokens"] = "pixels"
    batch_size: int = 64
    clip_norm: float | None = 1.0
    teacher: str = ""


def gan(family: str) -> Entry:
    """A variant as the table of GANs has it; no schedule depends on the number of steps."""
    settings = gan_digits_table.SETTINGS[family]
    return Entry("adversarial", family, settings, 10**6, batch_size=gan_digits_table.BATCH[family], clip_norm=None)


def of_tokens(paradigm: str, family: str, settings: dict) -> Entry:
    """A transformer as the table of token families has it."""
    return Entry(paradigm, family, token_families.TRANSFORMER, 400, settings, on="tokens", batch_size=128)


DIFFUSED = {"solver": "dpmpp_2m", "num_inference_steps": 15, "guidance_scale": 1.5}
UNET = {"label_dropout": 0.1}
MODELS = {
    "vae": Entry(
        "autoencoder",
        "vae",
        {"widths": [32, 64], "reconstruction": "logistic", "kl_weight": 1.0, "density": {}},
        500,
    ),
    "vdvae": Entry("autoencoder", "vdvae", {"blocks": [1, 4, 3, 2]}, 650),
    "realnvp": Entry("flow", "realnvp", {"scales": 2, "width": 32, "blocks": 1}, 600),
    "glow": Entry("flow", "glow", {"scales": 3, "steps": 6, "width": 64}, 900),
    "tarflow": Entry("flow", "tarflow", {"width": 64, "flows": 4, "layers": 2}, 500),
    "pixelcnn": Entry("autoregressive", "pixelcnn", {"width": 32, "blocks": 6, "dropout": 0.2}, 280),
    "gpt": of_tokens("autoregressive", "gpt", {"guidance_scale": 3.0, "top_p": 0.9}),
    "maskgit": of_tokens("masked", "maskgit", {"guidance_scale": 1.5, "choice_temperature": 1.0}),
    **{name: gan(name) for name in ("dcgan", "wgan_gp", "cgan", "biggan", "stylegan2", "r3gan")},
    "ddpm": Entry(
        "diffusion",
        "latent_diffusion",
        {"backbone": {"name": "unet", "widths": [32, 64], "attention": [False, True]}, **UNET},
        350,
        DIFFUSED,
    ),
    "latent_diffusion": Entry(
        "diffusion",
        "latent_diffusion",
        {"backbone": {"name": "unet", "widths": [64, 128], "attention": [False, True]}, "objective": "flow", **UNET},
        160,
        DIFFUSED,
        on="latents",
        batch_size=128,
    ),
    "consistency": Entry(
        "diffusion",
        "consistency",
        {"most_guidance": 2.0, "stage_steps": 8},
        45,
        {"num_inference_steps": 2, "guidance_scale": 1.5},
        on="latents",
        batch_size=128,
        teacher="latent_diffusion",
    ),
}


def measure(name: str, seed: int) -> dict:
    """One model after the budget: figures of 500 samples, bits, milliseconds, parameters, steps. A run whose loss is
    not finite counts as failed, and has no other figures."""
    entry = MODELS[name]
    first, data = stood_on(entry.on, seed)
    try:
        family, state, took = trained(entry, data, seed, first)
    except NonFiniteError:
        return {"failed": 1}
    settings = family_class(entry.family).Settings(**entry.settings)
    told = digits.yardstick().of_sampler(family, settings, FOLDER / f"{name}_{seed}.png")
    return {
        **told,
        **bits(family),
        **probe(first or family),
        **{f"cpu_ms_{size}": cpu_ms(family, settings, size) for size in (1, 100)},
        "network_evaluations": generation.network_evaluations(family, settings),
        "parameters": sum(parameter.numel() for net in family.kept for parameter in family.nets[net].parameters()),
        "steps": state.step,
        "cpu_seconds": round(took),
        "failed": 0,
    }


def trained(
    entry: Entry, data: Data, seed: int, first: Family | None, share: float = 1.0
) -> tuple[Family, State, float]:
    """As `quality.trained`, in what is left of the budget; `first` is given to decode with. A teacher is trained first,
    for a `share` of its steps and of the budget."""
    model, left = entry.model, share * (1 if first is None else 1 - FIRST_PART)
    if entry.teacher:
        above = MODELS[entry.teacher]
        teacher, _, _ = trained(above, data, seed, first, FIRST_PART / (1 - FIRST_PART))
        model = {key: getattr(teacher.config, key) for key in family_class(entry.family).inherits[TEACHER]} | model
        left -= FIRST_PART
    family = quality.made(entry.family, model, data.info, seed)
    if entry.teacher:
        family.receive(TEACHER, teacher)
    steps = round(entry.steps * share)
    training = TrainingConfig(
        steps=steps, batch_size=entry.batch_size, report_every=100, save_every=steps, clip_norm=entry.clip_norm
    )
    family, state, took = quality.trained(family, data, training, seed, left * BUDGET, time.process_time)
    return (family if first is None else quality.with_autoencoder(family, first)), state, took


@functools.cache
def stood_on(what: str, seed: int) -> tuple[Family | None, Data]:
    """What a model is trained on, and the autoencoder or tokeniser that made it."""
    images = digits.data()["train"]
    if what == "pixels":
        return None, images
    model = token_families.GRID if what == "tokens" else digits.demo().autoencoders["vae"].model
    vae = quality.made("vae", model, images.info, seed)
    training = TrainingConfig(steps=10**4, batch_size=128, report_every=100)
    vae, _, _ = quality.trained(vae, images, training, seed, FIRST_PART * BUDGET, time.process_time)
    return vae, quality.encoded(vae, images) if what == "latents" else quality.tokenised(vae, images, shifts=1)


def bits(family: Family) -> dict[str, float]:
    """Bits per dimension, or a token, of held-out and of training images, evenly spread; none without a likelihood of
    them."""
    likelihood = family.likelihood
    return {} if likelihood is None or likelihood.latents else digits.bits(family, likelihood.most_rows or ROWS)


def probe(family: Family) -> dict[str, float]:
    """The classes that a linear classifier reads off the latents of an autoencoder that has seen none."""
    if "autoencoder" not in family.nets:
        return {}
    net, found = family.nets["autoencoder"], []
    for split in ("train", "test"):
        columns = digits.data()[split].columns
        parts = [net.encode(quality.MEDIUM.to_floats(part))[0].flatten(1) for part in columns["image"].split(256)]
        found += [torch.cat(parts), columns["label"]]
    return {"probe_accuracy": probe_accuracy(*found)}


def cpu_ms(sampler: Sampler, settings: Strict, size: int) -> float:
    """Milliseconds of this process an image, in batches of `size`: the least of a few, after one for warmth."""
    spent = []
    for request in generation.requests(sampler, settings, 3 * size, 0, size):
        began = time.process_time()
        sampler.sample(request)
        spent.append(1000 * (time.process_time() - began) / size)
    return round(min(spent[1:]), 2)


def main(argv: list[str] | None = None, names: tuple[str, ...] = tuple(MODELS), title: str = "paradigms") -> None:
    if argv and argv[0] == "--table":
        folder = Path(argv[1]) if argv[1:] else FOLDER
        print(markdown({name: MODELS[name].paradigm for name in names}, digits.SEEDS, folder))
        return
    as_a_worker()
    torch.set_num_threads(1)  # CPU seconds are what is shared out
    asked, seeds = digits.asked(argv, names)
    digits.tell(
        title,
        digits.table(asked, seeds, FOLDER, measure),
        f"Fréchet distance of {{best}}, mean of {len(seeds)} seed(s), {BUDGET:.0f} CPU seconds each",
        "PixelCNN++ below Glow below RealNVP in bits; diffusion below flows in distance; GANs fastest",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
