"""Low-rank adapters of a Stable Diffusion U-Net in the files of diffusers, which `load_lora_weights` reads: safetensors
whose names are those of the layers, `unet.<layer>.lora_A.weight` (rank, in) and `lora_B.weight` (out, rank). What
scales them is in B, so that the file's alpha is the rank, its default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from components.artifacts.run_folder import Run
from components.errors import SamplerError
from components.families.stable_diffusion import Model as StableDiffusion
from components.families.stable_diffusion import adapter_net
from components.files import whole_folder
from components.nets.low_rank import Adapter, AdapterConfig

WEIGHTS = "pytorch_lora_weights.safetensors"  # of a folder, as diffusers looks for it
EXPECTED = "LoRA weights as diffusers saves them"
UNET, BACKBONE = "unet.", "backbone."  # where a layer lies there, and where in our denoiser
DOWN = ("lora_A.weight", "lora.down.weight")  # the second is what diffusers wrote before it used peft
UP = ("lora_B.weight", "lora.up.weight")
ALPHA = "alpha"
HEADER = "lora_adapter_metadata"  # of the file, where diffusers keeps peft's LoraConfig as JSON


def export(run: Run, target: Path) -> None:
    """Writes a run's adapter as WEIGHTS, or each of several as NAME.safetensors. Raises SamplerError of a run that has
    none."""
    family = run.family
    if not isinstance(family, StableDiffusion) or not family.config.adapters:
        raise SamplerError(f"{run.folder}: expected a run of stable_diffusion with model.adapters")
    names = tuple(family.config.adapters)
    with whole_folder(target) as folder:
        for name in names:
            file = WEIGHTS if len(names) == 1 else f"{name}.safetensors"
            weights = weights_of(family.nets[adapter_net(name)])
            safetensors.torch.save_file(weights, folder / file, metadata={"format": "pt"})


def weights_of(adapter: Adapter) -> dict[str, Tensor]:
    found = {}
    for layer in adapter.layers:
        for part, value in zip((DOWN[0], UP[0]), adapter.matrices(layer), strict=True):
            found[f"{UNET}{layer.removeprefix(BACKBONE)}.{part}"] = value.detach().cpu().contiguous()
    return found


def read(path: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """An adapter's config, and its weights by the names of Adapter's state. Raises SamplerError, one line, of a file
    that is missing or adapts something else than linear layers of the U-Net."""
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise SamplerError(f"{path}: missing; expected {EXPECTED}")
    try:
        stored = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise SamplerError(f"{path}: not a file of weights ({str(error)[:200]})") from None
    pairs = _scaled(path, _pairs(path, stored), header)
    rank = max(len(down) for down, _ in pairs.values())
    config = AdapterConfig(rank=rank, targets=tuple(f"{BACKBONE}{layer}" for layer in pairs))
    weights = {}
    for layer, (down, up) in pairs.items():
        key = f"{BACKBONE}{layer}".replace(".", "/")
        # smaller ranks are filled up with zeros, which add nothing
        weights[f"down.{key}"] = torch.cat([down, down.new_zeros(rank - len(down), down.shape[1])])
        weights[f"up.{key}"] = torch.cat([up, up.new_zeros(len(up), rank - up.shape[1])], dim=1)
    return config, weights


def _scaled(
    path: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], header: Mapping[str, Any]
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """With alpha / rank as the header has it, where diffusers writes what peft was told."""
    told = {name.removeprefix(UNET): value for name, value in header.items() if name.startswith(UNET)}
    by_layer = [name for name in ("alpha_pattern", "rank_pattern", "use_rslora") if told.get(name)]
    if by_layer:
        raise SamplerError(f"{path}: {by_layer[0]} in its header; expected one alpha for all layers")
    if "lora_alpha" not in told:
        return pairs
    scale = float(told["lora_alpha"]) / float(told["r"])
    return {layer: (down, up * scale) for layer, (down, up) in pairs.items()}


def _pairs(path: Path, stored: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer, A and B with alpha / rank in it, both float32."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.items():
        part = next((part for part in (*DOWN, *UP, ALPHA) if name.endswith(f".{part}")), None)
        if part is None or not name.startswith(UNET):
            raise SamplerError(f"{path}: {name}: expected {EXPECTED}, of the U-Net alone")
        kind = "down" if part in DOWN else "up" if part in UP else ALPHA
        parts.setdefault(name.removeprefix(UNET).removesuffix(f".{part}"), {})[kind] = value.float()
    pairs = {}
    for layer, found in parts.items():
        if not {"down", "up"} <= found.keys() or found["down"].ndim != 2:
            raise SamplerError(f"{path}: {layer}: expected a pair of matrices, of a linear layer")
        rank = len(found["down"])
        pairs[layer] = found["down"], found["up"] * (float(found[ALPHA]) / rank if ALPHA in found else 1.0)
    return pairs
