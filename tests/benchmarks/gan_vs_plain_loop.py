"""Steps per second of our fit against a straightforward loop of the same nets, on the same batches.

python -m tests.benchmarks.gan_vs_plain_loop

The plain loop is the one of tutorials: every group of images is scored by a forward of its own, the discriminator's
weights get gradients in the generator's move too, and losses are read at each step. The generator learns from the
images that the discriminator has just seen (the figure that counts), or, as `redrawn` tells, from images of a second
pass. All loops average weights.
"""

from __future__ import annotations

import functools
import statistics
import time

import torch
from torch import Tensor

from components import ema
from components.data import batches
from components.families.gan import penalties
from components.families.gan.base import GAN
from components.images import from_uint8
from components.training import TrainingConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import emit
from tests.benchmarks.gan_digits_table import BATCH, SETTINGS

STEPS, WARM, REPEATS = 30, 5, 3
VARIANTS = ("dcgan", "wgan_gp", "r3gan")


def plain(name: str, steps: int, redraws: bool = False) -> None:
    train = digits.data()["train"]
    family = quality.made(name, SETTINGS[name], train.info, 0)
    family.nets.to(memory_format=torch.contiguous_format).train()
    config, generator, critic = family.config, family.nets["generator"], family.nets["discriminator"]
    players = {"generator": generator}
    average = ema.copy_of(players)
    optimizers = {
        name: torch.optim.Adam(net.parameters(), lr=block.learning_rate, betas=block.betas)
        for name, net, block in (
            ("generator", generator, config.generator),
            ("critic", critic, config.discriminator),
        )
    }
    stream = batches(train, BATCH[name])
    for step in range(steps):
        batch = next(stream)
        real = from_uint8(batch.columns["image"])
        label = {"label": batch.columns["label"]} if family.conditional else {}
        optimizers["critic"].zero_grad()
        images = generator(torch.randn(len(real), config.latent_dim), **label)
        loss = critic_loss(family, real, images.detach(), label)
        loss.backward()
        optimizers["critic"].step()
        told = [loss.item()]
        if (step + 1) % config.num_critic_steps == 0:
            optimizers["generator"].zero_grad()
            if redraws:
                images = generator(torch.randn(len(real), config.latent_dim), **label)
            partners = score(critic, real, label) if family.loss.paired else None
            loss = family.loss.generator(score(critic, images, label), partners)
            loss.backward()
            optimizers["generator"].step()
            told.append(loss.item())
        ema.update(average, players, 0.99)


def score(critic, images: Tensor, label: dict[str, Tensor]) -> Tensor:
    return critic({"images": images, **label}).scores[0]


def critic_loss(family: GAN, real: Tensor, fake: Tensor, label: dict[str, Tensor]) -> Tensor:
    config, critic = family.config, family.nets["discriminator"]
    real, fake = real.requires_grad_(config.r1 > 0), fake.requires_grad_(config.r2 > 0)
    scores = score(critic, real, label), score(critic, fake, label)
    loss = family.loss.discriminator(*scores, 1.0)
    if config.gradient_penalty:
        between = penalties.interpolate(real, fake, torch.rand(len(real))).requires_grad_()
        loss = loss + config.gradient_penalty * penalties.gradient_penalty(score(critic, between, label), between)
    for gamma, images, found in zip((config.r1, config.r2), (real, fake), scores, strict=True):
        if gamma:
            (squared,) = penalties.squared_gradients([found], [images])
            loss = loss + gamma / 2 * squared
    return loss


def ours(name: str, steps: int) -> None:
    train = digits.data()["train"]
    training = TrainingConfig(steps=steps, batch_size=BATCH[name], report_every=min(100, steps), save_every=steps)
    quality.trained(quality.made(name, SETTINGS[name], train.info, 0), train, training, 0)


def steps_per_second(loop, name: str) -> float:
    loop(name, WARM)
    began = time.process_time()  # of one thread: a machine that others use takes none of it
    loop(name, STEPS)
    return STEPS / (time.process_time() - began)


def main() -> None:
    torch.set_num_threads(1)
    table = {}
    for name in VARIANTS:
        # in turn, so that a machine that slows down slows both
        loops = (ours, plain, functools.partial(plain, redraws=True))
        rounds = [[steps_per_second(loop, name) for loop in loops] for _ in range(REPEATS)]
        rates = [round(statistics.median(rates), 1) for rates in zip(*rounds, strict=True)]
        ratios = [round(statistics.median(found[0] / found[k] for found in rounds), 2) for k in (1, 2)]
        table[name] = dict(zip(("ours", "plain", "redrawn", "ratio", "ratio_redrawn"), rates + ratios, strict=True))
    least = min(entry["ratio"] for entry in table.values())
    emit("gan_vs_plain_loop", least, "steps/s of ours / of a plain loop (least of the variants)", ">= 1.3", table=table)


if __name__ == "__main__":
    main()
