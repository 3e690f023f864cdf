"""Run folders of an earlier version: their config and weights by today's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from components.diffusion.config import MOVED

NETS = {"unet": "denoiser"}
# of an old net's weights; `read` is of BigBiGAN's encoder
PARTS = {"unet": "backbone", "context": "conditioner.context", "text": "conditioner.text", "read": "head"}


def upgraded(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """A run's config, `unet` as `backbone`, and what describes the U-Net in that block."""
    if family == "stable_diffusion" and "unet" in config:
        return {("backbone" if name == "unet" else name): value for name, value in config.items()}
    if family == "latent_diffusion" and "backbone" not in config:
        backbone = {name: config[name] for name in MOVED if name in config}
        return {"backbone": backbone, **{name: value for name, value in config.items() if name not in MOVED}}
    return config


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
