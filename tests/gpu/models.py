"""The nets that are timed: latent diffusion U-Nets of some sizes, over latents of noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from components.data.info import AutoencoderInfo, DataInfo
from components.families import latent_diffusion
from tests.benchmarks.rates import Data, noise
from tests.gpu.part import Part

CLASSES = tuple(map(str, range(10)))
ROWS = 2048  # of a data set


@dataclass(frozen=True)
class Size:
    """A U-Net and the latents (4, side, side) that it works on."""

    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    heads: int
    side: int
    batch_size: int


DEMO = Size((64, 128), (False, True), layers=1, heads=4, side=8, batch_size=64)  # of params.yaml
MIDDLE = Size((128, 256, 256), (False, True, True), layers=2, heads=8, side=32, batch_size=128)
TOY = Size((32, 64), (False, True), layers=1, heads=2, side=8, batch_size=4)


def of_width(width: int, batch_size: int) -> Size:
    """The middle size at another width."""
    return Size((width, 2 * width, 2 * width), MIDDLE.attention, 2, 8, 32, batch_size)


def sized(part: Part, size: Size) -> Size:
    return TOY if part.toy else size


def info(size: Size) -> DataInfo:
    images = DataInfo(shape=(1, 2 * size.side, 2 * size.side), classes=CLASSES)
    return DataInfo(
        shape=(4, size.side, size.side),
        classes=CLASSES,
        statistics={"channel_mean": (0.0,) * 4, "channel_std": (1.0,) * 4},
        autoencoder=AutoencoderInfo(config={"latent_channels": 4, "widths": [32, 64]}, data=images),
    )


def unet(size: Size, device: torch.device, channels_last: bool = False) -> latent_diffusion.Model:
    """Its family, with the weights of seed 0 of the device's own generator."""
    torch.manual_seed(0)
    with device:
        family = latent_diffusion.Model(latent_diffusion.Model.Config(**config(size)), info(size))
    family.nets.to(device)
    if channels_last:
        family.nets.to(memory_format=torch.channels_last)
    return family


def config(size: Size) -> dict:
    """The family's, as a block of params.yaml."""
    names = ("widths", "attention", "layers", "heads")
    return {"backbone": {"name": "unet", **{name: getattr(size, name) for name in names}}}


def net_name(family: latent_diffusion.Model) -> str:
    """Of the net that is trained, as calls name it."""
    return family.phases[0].net


def latents(size: Size, rows: int = ROWS) -> Data:
    return noise(info(size), max(rows, size.batch_size))
