"""What folders of weights that other tools write have in common: JSON beside safetensors, by path or by hub name."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from components.artifacts.run_folder import load_json
from components.errors import ConfigError, SamplerError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def folder_of(name: str, what: str, known: str, files: Sequence[str] | None = None) -> Path:
    """The folder that a path names, or the hub's copy of what a hub name names, of which `files` are fetched if they
    are not here. Raises ConfigError, telling what is `known` to be had, if there is neither."""
    if Path(name).is_dir():
        return Path(name)
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(f"{what}: {name}: no such folder, and the hub cannot be asked ({error})") from None
    try:
        return Path(hub.snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError, hub.errors.HFValidationError) as error:
        raise ConfigError(f"{what}: {name}: {str(error).splitlines()[0]}; expected {known}") from None


def refuse_missing(name: str, what: str, known: str) -> None:
    """Raises ConfigError of what can be told without the network to be neither a folder of weights nor a hub name."""
    folder = Path(name)
    if folder.is_dir():
        for pattern in ("config.json", "*.safetensors"):
            if not any(folder.glob(pattern)):
                raise ConfigError(f"{what}: {name}: no {pattern} in it; expected {known}")
    elif not _HUB_NAME.fullmatch(name):
        raise ConfigError(f"{what}: {name}: no such folder, and no hub name; expected {known}")
    elif os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        hub = importlib.import_module("huggingface_hub")
        if not isinstance(hub.try_to_load_from_cache(name, "config.json"), str):
            raise ConfigError(f"{what}: {name}: no such folder, nor the hub's copy, and it is off; expected {known}")


def refuse_pickles(folder: Path) -> None:
    """Raises SamplerError naming the first file that may be one."""
    pickles = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICKLES)
    if pickles:
        raise SamplerError(f"{pickles[0]}: may be a pickle, which can run code when loaded; expected safetensors alone")


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Raises SamplerError if there is no mapping; `expected`: what the folder should be."""
    content = load_json(path, expected)
    if not isinstance(content, dict):
        raise SamplerError(f"{path}: expected a mapping")
    return content


def weight_files(folder: Path, name: str, expected: str) -> list[Path]:
    """Those of a network: one file, or several under an index. Raises SamplerError of the first that is missing."""
    index = folder / f"{name}.index.json"
    names = sorted(set(read_json(index, expected)["weight_map"].values())) if index.is_file() else [name]
    paths = [folder / Path(part).name for part in names]
    for path in paths:
        if not path.is_file():
            raise SamplerError(f"{path}: missing; expected weights as safetensors, as in {expected}")
    return paths


def read_weights(folder: Path, name: str, expected: str) -> dict[str, Tensor]:
    """A network's weights in float32. Raises SamplerError of a file that is missing or damaged."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder, name, expected):
        try:
            weights |= safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise SamplerError(f"{path}: not a file of weights ({str(error)[:200]})") from None
    return {key: value.float() for key, value in weights.items()}
