"""Untrained samplers of sound and film as the presets size them: what they cost does not depend on their weights."""

from __future__ import annotations

from typing import Any

import torch
import yaml

from components.data.info import AutoencoderInfo, DataInfo
from components.families import family_class
from components.families.base import Sampler
from pipelines.support.paths import ROOT

CLASSES = tuple("0123456789")


def preset(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "presets" / f"{name}.yaml").read_text())


def wavenet(length: int | None = None) -> Sampler:
    """Of `length` samples a clip, those of the preset's if None. Its clips never end before their row does."""
    found = preset("spoken_digits")
    rate = found["data"]["sample_rate"]
    count = length or round(found["data"]["seconds"] * rate)
    kind = family_class("wavenet")
    torch.manual_seed(0)
    made = kind(
        kind.Config(**found["samplers"]["wavenet"]["model"]),
        DataInfo(shape=(1, count), medium="audio", rate=rate, classes=CLASSES),
    )
    with torch.no_grad():
        made.nets["wavenet"].head[-1].bias[-1] = -30.0
    return made


def film_diffusion() -> Sampler:
    found = preset("moving_digits")
    side, films = found["data"]["image_size"], family_class("causal_vae")
    data = DataInfo(shape=(1, found["data"]["frames"], side, side), medium="video", classes=CLASSES)
    config = films.Config(**found["autoencoders"]["film"]["model"])
    latent = films(config, data).latent_shape
    channels = latent[0]
    info = DataInfo(
        shape=latent,
        medium="video",
        classes=CLASSES,
        statistics={"channel_mean": (0.0,) * channels, "channel_std": (1.0,) * channels},
        autoencoder=AutoencoderInfo(family="causal_vae", config=config.model_dump(mode="json"), data=data),
    )
    kind = family_class("video_diffusion")
    torch.manual_seed(0)
    return kind(kind.Config(**found["samplers"]["film_diffusion"]["model"]), info)
