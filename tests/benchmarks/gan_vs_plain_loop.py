"""Steps per second of our fit against a straightforward loop of the same nets, on the same batches.

python -m tests.benchmarks.gan_vs_plain_loop

Three plain loops, each what one finds in tutorials. In all of them every group of images is scored by a forward of its
own, the discriminator's weights get gradients in the generator's move too, and losses are read at each step.

- `reusing`: the generator learns from the images that the discriminator has just seen, cut from the graph for its move.
- `redrawing`: the generator learns from images of a second pass.
- `needless`: that, and in the discriminator's move the graph reaches back through the generator, whose gradients are
  thrown away: how the most used WGAN-GP loops are written (eriklindernoren/PyTorch-GAN, implementations/wgan_gp).

All loops average weights.
"""

from __future__ import annotations

import functools
import statistics
import time

import torch
from torch import Tensor

from components.data.dataset import batches
from components.data.media.image import MEDIUM
from components.gan import penalties
from components.gan.base import GAN
from components.training import ema
from components.training.loop import TrainingConfig
from tests.benchmarks import digits, quality
from tests.benchmarks.common import emit
from tests.benchmarks.gan_digits_table import BATCH, SETTINGS

STEPS, WARM, REPEATS = 30, 5, 3
VARIANTS = ("dcgan", "wgan_gp", "r3gan")


def plain(name: str, steps: int, redraws: bool = False, cuts: bool = True) -> None:
    """`redraws`: a second pass for the generator's move. `cuts`: the critic's graph ends at the images."""
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
        real = MEDIUM.to_floats(batch.columns["image"])
        label = {"label": batch.columns["label"]} if family.conditional else {}
        optimizers["critic"].zero_grad()
        images = generator(torch.randn(len(real), config.latent_dim), **label)
        loss = critic_loss(family, real, images.detach() if cuts else images, label)
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
    for gamma, images in ((config.r1, real), (config.r2, fake)):
        if gamma:
            images.requires_grad_()
    scores = score(critic, real, label), score(critic, fake, label)
    loss = family.loss.discriminator(*scores, 1.0)
    if config.gradient_penalty:
        between = penalties.interpolate(real, fake.detach(), torch.rand(len(real))).requires_grad_()
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
    loops = {
        "ours": ours,
        "reusing": plain,
        "redrawing": functools.partial(plain, redraws=True),
        "needless": functools.partial(plain, redraws=True, cuts=False),
    }
    table = {}
    for name in VARIANTS:
        # in turn, so that a machine that slows down slows all
        rounds = [{loop: steps_per_second(run, name) for loop, run in loops.items()} for _ in range(REPEATS)]
        rates = {loop: round(statistics.median(found[loop] for found in rounds), 1) for loop in loops}
        ratios = {
            f"ratio_{loop}": round(statistics.median(found["ours"] / found[loop] for found in rounds), 2)
            for loop in loops
            if loop != "ours"
        }
        table[name] = rates | ratios
    least = min(entry["ratio_needless"] for entry in table.values())
    what = "steps/s of ours / of a plain loop with a needless graph and a second pass (least of the variants)"
    emit("gan_vs_plain_loop", least, what, ">= 1.3", table=table)


if __name__ == "__main__":
    main()
