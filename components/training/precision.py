"""The precision that networks are computed in. Weights, optimizers and averages stay float32."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def fastest(device: str) -> Precision:
    """What a kind of device multiplies matrices faster in: bfloat16 on GPUs, and on CPUs with instructions for it.

    The U-Net of the demo trains 1.6 times as fast so with AVX512_BF16 (AMD EPYC) and 1.9 with AMX (Intel Xeon); other
    CPUs emulate it, and are slower."""
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if device == "cuda" or native else "float32"


def chosen(asked: str, automatic: Precision, borne: bool) -> Precision:
    """The precision `asked` for (auto, float32, bfloat16); auto is `automatic` where what is computed bears it."""
    return asked if asked != "auto" else automatic if borne else "float32"


def autocast(device: str, precision: Precision) -> torch.autocast:
    """Networks of the block are computed in `precision`."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
