"""Run folders of an earlier version: their config and weights by today's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from components.config import Strict
from components.data.info import DataInfo
from components.diffusion.config import MOVED

InfoT = TypeVar("InfoT", bound=Strict)  # with family, config and data

NORM_GROUPS = 32  # at most, whatever a net's widths
NETS = {"unet": "denoiser"}
# of an old net's weights; `read` is of BigBiGAN's encoder
PARTS = {"unet": "backbone", "context": "conditioner.context", "text": "conditioner.text", "read": "head"}


def upgraded(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """A run's config, `unet` as `backbone`, what describes the U-Net in that block, and the number of groups that norms
    had before there was a choice."""
    config = _with_backbone(family, config)
    if family in ("vae", "judge"):
        return {"norm_groups": NORM_GROUPS, **config}
    if family == "latent_diffusion" and config["backbone"].get("name", "unet") == "unet":
        return {**config, "backbone": {"norm_groups": NORM_GROUPS, **config["backbone"]}}
    return config


def _with_backbone(family: str, config: dict[str, Any]) -> dict[str, Any]:
    if family == "stable_diffusion" and "unet" in config:
        return {("backbone" if name == "unet" else name): value for name, value in config.items()}
    if family == "latent_diffusion" and "backbone" not in config:
        backbone = {name: config[name] for name in MOVED if name in config}
        return {"backbone": backbone, **{name: value for name, value in config.items() if name not in MOVED}}
    return config


def upgraded_data(data: DataInfo) -> DataInfo:
    """What a run knows of its data, with the configs of other runs in it upgraded."""
    inputs = {role: upgraded_info(run) for role, run in data.inputs.items()}
    autoencoder = data.autoencoder and upgraded_info(data.autoencoder)
    return data.model_copy(update={"inputs": inputs, "autoencoder": autoencoder})


def upgraded_info(run: InfoT) -> InfoT:
    """How to build another run's model, which an earlier version may have written."""
    changes = {"config": upgraded(run.family, run.config), "data": upgraded_data(run.data)}
    return run.model_copy(update=changes)


def weights_file(path: Path) -> Path:
    """`path`, or where an old run has these weights."""
    for old, new in NETS.items():
        if path.stem == new and not path.is_file() and path.with_stem(old).is_file():
            return path.with_stem(old)
    return path


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A net's weights by today's names."""
    if not any(key.startswith(("unet.", "read.")) for key in weights):
        return weights
    found = {}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        found[f"{PARTS.get(part, part)}.{rest}"] = value
    return found
