"""Fixed values as tensors that are copied to a device once: a copy makes the host wait for the device each time."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """(len(values),) with the type and on the device of `like`; shared, so not to be written to."""
    return _constant(values, like.dtype, like.device)


@functools.lru_cache(maxsize=1024)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training may ask later for what sampling asked for first
        return torch.tensor(values, dtype=dtype, device=device)
