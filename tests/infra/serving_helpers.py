"""A tiny untrained latent diffusion sampler, as a run folder, and its promotion."""

import json
from pathlib import Path

import torch

from components.artifacts import run_folder
from components.data.info import AutoencoderInfo, DataInfo
from components.families import family_class
from components.files import write_whole
from components.training.ema import copy_of
from components.training.loop import State

CLASSES = ("zero", "one", "two")


def write_promoted(root: Path, folder: str, version: str, **facts) -> Path:
    """promoted.json as `promote` leaves it, for a run folder below `root`. Each version is a content of its own."""
    promoted = {"model": "latent-foundry", "version": version, "run_folder": folder, "hash": f"content {version}"}
    write_whole(root / "promoted.json", json.dumps(promoted | facts))
    return root


def write_sampler(folder: Path, seed: int = 0) -> Path:
    """A sampler of 16x16 grey images of three classes, its weights random so that seed and class show."""
    torch.manual_seed(seed)
    images = DataInfo(shape=(1, 16, 16), classes=CLASSES)
    autoencoder = AutoencoderInfo(config={"latent_channels": 2, "widths": [8, 8]}, data=images)
    statistics = {"channel_mean": (0.0, 0.0), "channel_std": (1.0, 1.0)}
    latents = DataInfo(shape=(2, 8, 8), classes=CLASSES, statistics=statistics, autoencoder=autoencoder)
    kind = family_class("latent_diffusion")
    family = kind(kind.Config(backbone={"widths": (8, 16), "heads": 2, "context_dim": 8}), latents)
    for parameter in family.nets.parameters():  # zero-initialised layers would hide the class
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    average = copy_of(family.nets)
    state = State(step=1, nets=average, optimizers={}, average=average)
    provenance = run_folder.Provenance(data="data", code="code", job="job", seed=0, step=1)
    run_folder.write(folder, "latent_diffusion", family, state, provenance)
    return folder
