"""The device that work runs on where nobody names one, and numbers that lie on it."""

import functools

import torch
from torch import Tensor


def default_device() -> str:
    """`cuda` where there is one, `cpu` otherwise."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.lru_cache(1024)
def constant(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers (N,) on a device, copied there once: a host waits for every copy. Nobody may write there."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)
