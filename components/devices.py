"""The device that work runs on where nobody names one."""

import torch


def default_device() -> str:
    """`cuda` where there is one, `cpu` otherwise."""
    return "cuda" if torch.cuda.is_available() else "cpu"
