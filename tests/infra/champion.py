"""The sampler that serving benchmarks run: the champion, or an untrained one of the same kind and size."""

from __future__ import annotations

from pathlib import Path

import torch

from components.artifacts import run_folder
from components.data.info import AutoencoderInfo, DataInfo
from components.families import family_class
from components.families.base import Sampler
from infra.serving.model_store import read_promoted
from pipelines.serve import ROOT
from pipelines.support import params, paths


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def champion_or_untrained() -> tuple[Sampler, str]:
    """A latent diffusion sampler and which of the two it is; what it costs does not depend on its weights."""
    if (ROOT / paths.PROMOTED).is_file():
        folder = Path(read_promoted(ROOT / paths.PROMOTED).folder)
        if run_folder.read_config(folder).family == "latent_diffusion":
            return run_folder.load(folder, device()).family, "champion"
    family = untrained()
    family.nets.requires_grad_(False).eval().to(device())
    return family, "untrained"


def untrained() -> Sampler:
    """The default sampler of params.yaml, for 16x16 grey images of ten classes."""
    config = params.load(ROOT / params.DEFAULT)
    vae = family_class("vae").Config(**config.autoencoders["vae"].model)
    classes = tuple(str(number) for number in range(10))
    images = DataInfo(shape=config.data.shape, classes=classes)
    latent_shape = family_class("vae")(vae, images).latent_shape
    channels = latent_shape[0]
    data = DataInfo(
        shape=latent_shape,
        classes=classes,
        statistics={"channel_mean": (0.0,) * channels, "channel_std": (1.0,) * channels},
        autoencoder=AutoencoderInfo(config=vae.model_dump(mode="json"), data=images),
    )
    kind = family_class("latent_diffusion")
    torch.manual_seed(0)
    return kind(kind.Config(**config.samplers["ldm"].model), data)
