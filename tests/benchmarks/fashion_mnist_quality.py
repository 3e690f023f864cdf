"""Fashion-MNIST at equal compute and by one protocol: latent diffusion by a U-Net and by a transformer, a few-step
student, diffusion on pixels, the families on tokens, the GANs whose order is published, and diffusers' own recipe for
unconditional training as the outside peer.

    python -m tests.benchmarks.fashion_mnist_quality                      # all, a minute of training each
    python -m tests.benchmarks.fashion_mnist_quality gpt 0                # one row of the table: ten minutes, seed 0
    python -m tests.benchmarks.fashion_mnist_quality gpt 0 --seconds 1800 # or so many seconds

CPU seconds of one thread, or seconds of the clock on a GPU. Those of models on latents or tokens include their
autoencoder's training, a quarter, and nobody's include encoding the images, which `encoding_seconds` tells. The images
are read from ../shared/data/fashion-mnist if that is there, else from their official address. What is measured is kept
in .cache/fashion_mnist_quality, with a sheet of samples each, so that the table can be finished later.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from components.data.dataset import batches
from components.data.media.image import MEDIUM
from components.evaluation.protocol import EvaluateConfig
from components.families.base import Family, Sampler
from components.few_step.base import TEACHER
from components.metrics.figures import values
from components.sources import DataConfig
from components.training.loop import TrainingConfig
from components.training.optimizers import OptimizerConfig
from tests.benchmarks import quality
from tests.benchmarks.common import as_a_worker, emit
from tests.benchmarks.diffusers_peer import let_torchvision_import
from tests.benchmarks.gan_digits_table import BATCH as BATCH_SIZE
from tests.benchmarks.gan_digits_table import SETTINGS
from tests.benchmarks.rates import Data
from tests.benchmarks.token_families import TRANSFORMER

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "fashion_mnist_quality"
MIRROR = ROOT.parent / "shared" / "data" / "fashion-mnist"
SECONDS, BRIEF = 600.0, 60.0  # of each model that is named; of each where none is
FIRST_PART = 1 / 4  # of them for what a model on latents or tokens stands on
JUDGE_STEPS = 600
MOST_STEPS = 10**6  # more than anyone makes in that time
BATCH = 128
PROTOCOL = EvaluateConfig(num_samples=500, batch_size=250, resamples=50)
BACKBONE = {"widths": [64, 128], "attention": [False, True]}
PIXEL_WIDTHS = [32, 64]  # half: sixteen times the places of the latents would leave too few steps in minutes
DIT = {"name": "dit", "patch": 2, "width": 128, "depth": 6, "heads": 4}
# tokens on 8x8 places; the first resolution is narrow, where most of a step's time goes
GRID = {"latent_channels": 4, "widths": [16, 32, 64], "codebook": {"name": "fsq", "levels": [5, 5, 5, 5]}}
SCALES = {**GRID, "codebook": {"name": "scales", "sides": [1, 2, 3, 4, 6, 8], "size": 512}}
TOKENISERS = {"gpt": GRID, "maskgit": GRID, "var": SCALES}
STUDENT, STUDENT_STEPS = {"most_guidance": 2.0, "stage_steps": 25}, 200  # as the demo's
BESIDE = ("frechet_distance", "recall", "label_agreement", "ms_per_image")
FLAT = OptimizerConfig(learning_rate=1e-3, warmup=50)  # the number of steps is not known beforehand
SAMPLING = {"solver": "heun", "num_inference_steps": 12, "spacing": "karras", "guidance_scale": 1.5}
DRAWING = {"guidance_scale": 3.0, "top_p": 0.9}
DRAWINGS = {"gpt": DRAWING, "maskgit": {"guidance_scale": 1.5, "choice_temperature": 1.0}, "var": DRAWING}


def clock() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def training(steps: int = MOST_STEPS, batch_size: int = BATCH) -> TrainingConfig:
    return TrainingConfig(steps=steps, batch_size=batch_size, report_every=min(steps, 100), save_every=steps)


class Asked(NamedTuple):
    """One run: the data, what measures, and seconds of training."""

    train: Data
    yardstick: quality.Yardstick
    seconds: float
    seed: int

    def trained(
        self, name: str, model: dict, seconds: float, data: Data | None = None, batch_size: int = BATCH
    ) -> tuple[Family, int, float]:
        """A family after so many seconds, its steps, and the seconds that they took; of images, or other `data`."""
        data = data or self.train
        family = quality.made(name, model, data.info, self.seed)
        steps = training(batch_size=batch_size)
        family, state, took = quality.trained(family, data, steps, self.seed, seconds, clock)
        return family, state.step, took

    def sampled(self, name: str, family: Sampler, settings: dict, steps: int, seconds: float) -> dict:
        picture = FOLDER / f"{name}_{self.seed}.png"
        found = self.yardstick.of_sampler(family, family.Settings(**settings), picture)
        return {**found, "steps": steps, "seconds": round(seconds), "parameters": parameters(family)}


def encoded(encode: Callable[[], Data]) -> tuple[Data, dict]:
    """A data set of latents or tokens, and how long the images took."""
    began = clock()
    return encode(), {"encoding_seconds": round(clock() - began)}


def parameters(family: Family) -> int:
    return sum(weight.numel() for weight in family.nets.parameters())


class OnLatents(NamedTuple):
    """Diffusion of latents with its autoencoder, the latents, and what training took."""

    family: Sampler
    latents: Data
    steps: int
    seconds: float
    encoding: dict


def on_latents(backbone: dict, asked: Asked) -> OnLatents:
    optimizer = FLAT.model_copy(update={"learning_rate": 2e-3})
    vae, _, first = asked.trained("vae", {"optimizer": optimizer}, FIRST_PART * asked.seconds)
    latents, told = encoded(lambda: quality.encoded(vae, asked.train))
    model = {"backbone": backbone, "optimizer": FLAT}
    family, steps, second = asked.trained("latent_diffusion", model, asked.seconds - first, latents)
    return OnLatents(quality.with_autoencoder(family, vae), latents, steps, first + second, told)


def ldm(name: str, backbone: dict, asked: Asked) -> dict:
    made = on_latents(backbone, asked)
    return made.encoding | asked.sampled(name, made.family, SAMPLING, made.steps, made.seconds)


def student(asked: Asked) -> dict:
    """A consistency model of two evaluations taught by `ldm` as above, whose figures are told beside, and those of one
    evaluation. The seconds are the student's own."""
    made = on_latents(BACKBONE, asked)
    found = {"teacher": asked.sampled("teacher", made.family, SAMPLING, made.steps, made.seconds)}
    family = quality.made("consistency", {"backbone": BACKBONE, **STUDENT}, made.latents.info, asked.seed)
    family.receive(TEACHER, made.family)
    family, state, took = quality.trained(family, made.latents, training(STUDENT_STEPS), asked.seed, clock=clock)
    family = quality.with_autoencoder(family, made.family)
    for name, steps in (("one", 1), ("two", 2)):
        settings = {"num_inference_steps": steps, "guidance_scale": SAMPLING["guidance_scale"]}
        found[name] = asked.sampled(f"student_{name}", family, settings, state.step, took)
    beside = {f"{name}_{key}": found[name][key] for name in ("teacher", "one") for key in BESIDE}
    return found["two"] | beside


def on_tokens(name: str, asked: Asked) -> dict:
    optimizer = FLAT.model_copy(update={"learning_rate": 2e-3})
    vae, first_steps, first = asked.trained(
        "vae", {**TOKENISERS[name], "optimizer": optimizer}, FIRST_PART * asked.seconds
    )
    tokens, told = encoded(lambda: quality.tokenised(vae, asked.train))
    told |= {"tokeniser_steps": first_steps} | {key: value for key, (value,) in tokens.info.statistics.items()}
    family, steps, second = asked.trained(name, {**TRANSFORMER, "optimizer": FLAT}, asked.seconds - first, tokens)
    family = quality.with_autoencoder(family, vae)
    return told | asked.sampled(name, family, DRAWINGS[name], steps, first + second)


def pixels(asked: Asked) -> dict:
    """The DDPM baseline: noise prediction, linear schedule, uniform times (Ho et al. 2020)."""
    classic = {"objective": "epsilon", "schedule": {"name": "linear"}, "times": {"density": "uniform"}}
    net = {"backbone": {**BACKBONE, "widths": PIXEL_WIDTHS}}
    family, *spent = asked.trained("latent_diffusion", {**net, **classic, "optimizer": FLAT}, asked.seconds)
    return asked.sampled("pixels", family, {**SAMPLING, "guidance_scale": 1.0}, *spent)


def gan(name: str, asked: Asked) -> dict:
    """With the settings of the table of GANs on the digits."""
    family, *spent = asked.trained(name, SETTINGS[name], asked.seconds, batch_size=BATCH_SIZE[name])
    return asked.sampled(name, family, {}, *spent)


def diffusers_example(asked: Asked) -> dict:
    """An unconditional UNet2DModel of our pixel U-Net's widths with the library's DDPM scheduler, average of weights
    and learning rate, sampled by its own DDIM scheduler in as many evaluations as ours."""
    let_torchvision_import()
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    torch.manual_seed(asked.seed)
    shape = asked.train.info.shape
    net = UNet2DModel(
        sample_size=shape[-1],
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=PIXEL_WIDTHS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).to(quality.device())
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    noises, optimizer = DDPMScheduler(), torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999))
    began, steps = clock(), 0
    for batch in batches(asked.train, BATCH, seed=asked.seed):
        images = MEDIUM.to_floats(batch.columns["image"].to(quality.device()))
        noise, times = torch.randn_like(images), torch.randint(0, 1000, (len(images),), device=images.device)
        loss = F.mse_loss(net(noises.add_noise(images, noise, times), times).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.step(net.parameters())
        steps += 1
        if clock() - began > asked.seconds:
            break
    took = clock() - began
    average.copy_to(net.parameters())
    began = time.perf_counter()
    images = _drawn(net.eval(), DDIMScheduler(), PROTOCOL.num_samples, shape)
    each = (time.perf_counter() - began) * 1000 / len(images)
    quality.save(FOLDER / f"diffusers_{asked.seed}.png", images[:100])
    told = {"steps": steps, "seconds": round(took), "parameters": sum(weight.numel() for weight in net.parameters())}
    return asked.yardstick.of_images(images, None) | {"ms_per_image": round(each, 2)} | told


@torch.inference_mode()
def _drawn(net, scheduler, count: int, shape: tuple[int, int, int]) -> Tensor:
    generator, found = torch.Generator().manual_seed(0), []
    for start in range(0, count, PROTOCOL.batch_size):
        x = torch.randn(min(PROTOCOL.batch_size, count - start), *shape, generator=generator).to(quality.device())
        scheduler.set_timesteps(2 * SAMPLING["num_inference_steps"] - 1)  # heun's evaluations
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
        found.append(x.clamp(-1, 1).cpu())
    return torch.cat(found)


MODELS: dict[str, Callable[[Asked], dict]] = {
    "ldm": functools.partial(ldm, "ldm", BACKBONE),
    "dit": functools.partial(ldm, "dit", DIT),
    "student": student,
    **{name: functools.partial(on_tokens, name) for name in TOKENISERS},
    "pixels": pixels,
    **{name: functools.partial(gan, name) for name in ("dcgan", "wgan_gp", "sagan", "biggan", "stylegan2")},
    "diffusers": diffusers_example,
}


def main(argv: list[str] | None = None) -> None:
    words = argv or []
    seconds = SECONDS if words else BRIEF
    if "--seconds" in words:
        at = words.index("--seconds")
        seconds, words = float(words[at + 1]), words[:at] + words[at + 2 :]
    names = [word for word in words if not word.isdigit()] or list(MODELS)
    seeds = [int(word) for word in words if word.isdigit()] or [0]
    if unknown := set(names) - set(MODELS):
        sys.exit(f"no model {', '.join(sorted(unknown))}; expected some of {', '.join(MODELS)}")
    as_a_worker()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # CPU seconds are what is shared out
    train, yardstick, floor = measuring()
    table = {}
    for name in names:
        found = []
        for seed in seeds:
            measure = functools.partial(MODELS[name], Asked(train, yardstick, seconds, seed))
            found.append(quality.kept(FOLDER / f"{name}_{seed}_{seconds:.0f}.json", measure))
        table[name] = quality.spread(found) | {"frechet_interval": found[0]["frechet_interval"]}
    distances = {name: row["frechet_distance"] for name, row in table.items()}
    best = min(distances, key=distances.get)
    value, what, target = distances[best], f"Fréchet distance of {best}, {len(seeds)} seed(s)", ""
    if {"ldm", "diffusers"} <= distances.keys():
        value = distances["ldm"] / distances["diffusers"]
        what, target = "Fréchet distance of latent diffusion / of diffusers' example", "under 1"
    told = {"seconds": seconds, "real": quality.rounded(floor), "table": table}
    emit("fashion_mnist_quality", round(value, 3), f"{what}, at equal seconds of training", target, **told)


def measuring() -> tuple[Data, quality.Yardstick, dict]:
    """The training images, what measures, and the figures of real images."""
    mirror = str(MIRROR) if MIRROR.is_dir() else None
    data = quality.read(DataConfig(source="fashion_mnist", image_size=32, mirror=mirror))
    judge = quality.made("judge", {}, data["train"].info, 0)
    judge, _, _ = quality.trained(judge, data["train"], training(JUDGE_STEPS), 0)
    yardstick = quality.Yardstick(judge, data["test"], PROTOCOL)
    return data["train"], yardstick, values(yardstick.of_real(data["train"]))


if __name__ == "__main__":
    main(sys.argv[1:])
