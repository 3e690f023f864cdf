"""The nets that are timed: denoisers of latent diffusion of some sizes, over latents of noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from components.data.info import AutoencoderInfo, DataInfo
from components.families import latent_diffusion
from tests.benchmarks.rates import Data, noise
from tests.gpu.part import Part

CLASSES = tuple(map(str, range(10)))
ROWS = 2048  # of a data set


@dataclass(frozen=True)
class Size:
    """A denoiser, as its block of params.yaml, and the latents (4, side, side) that it works on."""

    backbone: Mapping[str, Any]
    side: int
    batch_size: int


def unet(widths: tuple[int, ...], attention: tuple[bool, ...], layers: int, heads: int) -> dict[str, Any]:
    return {"name": "unet", "widths": widths, "attention": attention, "layers": layers, "heads": heads}


def of_width(width: int, batch_size: int) -> Size:
    """The middle size at another width."""
    return Size(unet((width, 2 * width, 2 * width), (False, True, True), 2, 8), 32, batch_size)


def dit(width: int, depth: int, batch_size: int) -> Size:
    """A transformer over the middle size's latents, with heads of 64."""
    return Size({"name": "dit", "patch": 2, "width": width, "depth": depth, "heads": width // 64}, 32, batch_size)


DEMO = Size(unet((64, 128), (False, True), layers=1, heads=4), side=8, batch_size=64)  # of params.yaml
MIDDLE = Size(unet((128, 256, 256), (False, True, True), layers=2, heads=8), side=32, batch_size=128)
TOY = Size(unet((32, 64), (False, True), layers=1, heads=2), side=8, batch_size=4)


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


def family(size: Size, device: torch.device, channels_last: bool = False) -> latent_diffusion.Model:
    """Its family, with the weights of seed 0 of the device's own generator."""
    torch.manual_seed(0)
    with device:
        found = latent_diffusion.Model(latent_diffusion.Model.Config(**config(size)), info(size))
    found.nets.to(device)
    if channels_last:
        found.nets.to(memory_format=torch.channels_last)
    return found


def config(size: Size) -> dict:
    """The family's, as a block of params.yaml."""
    return {"backbone": dict(size.backbone)}


def net_name(family: latent_diffusion.Model) -> str:
    """Of the net that is trained, as calls name it."""
    return family.phases[0].net


def latents(size: Size, rows: int = ROWS) -> Data:
    return noise(info(size), max(rows, size.batch_size))
