"""Fashion-MNIST at equal compute and by one protocol: latent diffusion, diffusion on pixels, the GANs whose order is
published, and diffusers' own recipe for unconditional training as the outside peer.

    python -m tests.benchmarks.fashion_mnist_quality              # a minute of training each
    python -m tests.benchmarks.fashion_mnist_quality 1800         # so many seconds each

Seconds of the clock on whatever this process may use; the latent model's include its autoencoder's, a quarter. The
images are read from ../shared/data/fashion-mnist if that is there, else from their official address. What is measured
is kept in .cache/fashion_mnist_quality, so that the table can be finished later.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from components.data.dataset import batches
from components.data.media.image import MEDIUM
from components.evaluation.protocol import EvaluateConfig
from components.families.base import Family, Sampler
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

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "fashion_mnist_quality"
MIRROR = ROOT.parent / "shared" / "data" / "fashion-mnist"
SECONDS = 60.0
JUDGE_STEPS = 600
MOST_STEPS = 10**6  # more than anyone makes in that time
BATCH = 128
PROTOCOL = EvaluateConfig(num_samples=500, batch_size=250, resamples=50)
BACKBONE = {"widths": [64, 128], "attention": [False, True]}
PIXEL_WIDTHS = [32, 64]  # half: sixteen times the places of the latents would leave too few steps in minutes
FLAT = OptimizerConfig(learning_rate=1e-3, warmup=50)  # the number of steps is not known beforehand
SAMPLING = {"solver": "heun", "num_inference_steps": 12, "spacing": "karras", "guidance_scale": 1.5}


def training(steps: int = MOST_STEPS, batch_size: int = BATCH) -> TrainingConfig:
    return TrainingConfig(steps=steps, batch_size=batch_size, report_every=min(steps, 100), save_every=steps)


def sampled(
    name: str, family: Sampler, settings: dict, yardstick: quality.Yardstick, steps: int, seconds: float
) -> dict:
    found = yardstick.of_sampler(family, family.Settings(**settings), FOLDER / f"{name}.png")
    return {**found, "steps": steps, "seconds": round(seconds), "parameters": parameters(family)}


def parameters(family: Family) -> int:
    return sum(weight.numel() for weight in family.nets.parameters())


def ldm(train: Data, yardstick: quality.Yardstick, seconds: float) -> dict:
    optimizer = FLAT.model_copy(update={"learning_rate": 2e-3})
    vae = quality.made("vae", {"optimizer": optimizer}, train.info, 0)
    vae, _, first = quality.trained(vae, train, training(), 0, seconds / 4)
    latents = quality.encoded(vae, train)
    family = quality.made("latent_diffusion", {"backbone": BACKBONE, "optimizer": FLAT}, latents.info, 0)
    family, state, second = quality.trained(family, latents, training(), 0, seconds - first)
    return sampled("ldm", quality.with_autoencoder(family, vae), SAMPLING, yardstick, state.step, first + second)


def pixels(train: Data, yardstick: quality.Yardstick, seconds: float) -> dict:
    """The DDPM baseline: noise prediction, linear schedule, uniform times (Ho et al. 2020)."""
    classic = {"objective": "epsilon", "schedule": {"name": "linear"}, "times": {"density": "uniform"}}
    net = {"backbone": {**BACKBONE, "widths": PIXEL_WIDTHS}}
    family = quality.made("latent_diffusion", {**net, **classic, "optimizer": FLAT}, train.info, 0)
    family, state, took = quality.trained(family, train, training(), 0, seconds)
    unguided = {**SAMPLING, "guidance_scale": 1.0}
    return sampled("pixels", family, unguided, yardstick, state.step, took)


def gan(name: str, train: Data, yardstick: quality.Yardstick, seconds: float) -> dict:
    """With the settings of the table of GANs on the digits."""
    family = quality.made(name, SETTINGS[name], train.info, 0)
    family, state, took = quality.trained(family, train, training(batch_size=BATCH_SIZE[name]), 0, seconds)
    return sampled(name, family, {}, yardstick, state.step, took)


def diffusers_example(train: Data, yardstick: quality.Yardstick, seconds: float) -> dict:
    """An unconditional UNet2DModel of our pixel U-Net's widths with the library's DDPM scheduler, average of weights
    and learning rate, sampled by its own DDIM scheduler in as many evaluations as ours."""
    let_torchvision_import()
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=train.info.shape[-1],
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=PIXEL_WIDTHS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).to(quality.device())
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    noises, optimizer = DDPMScheduler(), torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999))
    began, steps = time.perf_counter(), 0
    for batch in batches(train, BATCH):
        images = MEDIUM.to_floats(batch.columns["image"].to(quality.device()))
        noise, times = torch.randn_like(images), torch.randint(0, 1000, (len(images),), device=images.device)
        loss = F.mse_loss(net(noises.add_noise(images, noise, times), times).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.step(net.parameters())
        steps += 1
        if time.perf_counter() - began > seconds:
            break
    took = time.perf_counter() - began
    average.copy_to(net.parameters())
    began = time.perf_counter()
    images = _drawn(net.eval(), DDIMScheduler(), PROTOCOL.num_samples, train.info.shape)
    each = (time.perf_counter() - began) * 1000 / len(images)
    quality.save(FOLDER / "diffusers.png", images[:100])
    told = {"steps": steps, "seconds": round(took), "parameters": sum(weight.numel() for weight in net.parameters())}
    return yardstick.of_images(images, None) | {"ms_per_image": round(each, 2)} | told


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


MODELS: dict[str, Callable[[Data, quality.Yardstick, float], dict]] = {
    "ldm": ldm,
    "pixels": pixels,
    **{name: functools.partial(gan, name) for name in ("dcgan", "wgan_gp", "sagan", "biggan", "stylegan2")},
    "diffusers": diffusers_example,
}


def main(argv: list[str] | None = None) -> None:
    seconds = float(argv[0]) if argv else SECONDS
    as_a_worker()
    mirror = str(MIRROR) if MIRROR.is_dir() else None
    data = quality.read(DataConfig(source="fashion_mnist", image_size=32, mirror=mirror))
    judge = quality.made("judge", {}, data["train"].info, 0)
    judge, _, _ = quality.trained(judge, data["train"], training(JUDGE_STEPS), 0)
    yardstick = quality.Yardstick(judge, data["test"], PROTOCOL)
    floor = values(yardstick.of_real(data["train"]))
    table = {}
    for name, run in MODELS.items():
        measure = functools.partial(run, data["train"], yardstick, seconds)
        table[name] = quality.kept(FOLDER / f"{name}_{seconds:.0f}.json", measure)
    emit(
        "fashion_mnist_quality",
        round(table["ldm"]["frechet_distance"] / table["diffusers"]["frechet_distance"], 3),
        "Fréchet distance of latent diffusion / of diffusers' example, at equal seconds of training",
        "under 1",
        seconds=seconds,
        real=quality.rounded(floor),
        table=table,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
