"""How a codebook is used."""

from __future__ import annotations

import torch
from torch import Tensor


def code_counts(tokens: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs among tokens of any shape, (size,) int64."""
    return torch.bincount(tokens.flatten(), minlength=size)


def usage(counts: Tensor) -> Tensor:
    """The share of codes that occur at all."""
    return (counts > 0).double().mean()


def perplexity(counts: Tensor) -> Tensor:
    """How many codes would have the same entropy if they occurred equally often."""
    return torch.special.entr(counts.double() / counts.sum()).sum().exp()
