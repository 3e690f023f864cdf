"""Workers that train one net must hold equal weights: how to tell, and the first tensor that differs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.errors import TrainingError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a value


class DesyncError(TrainingError):
    """Workers that must hold equal weights do not."""


def fingerprint(net: nn.Module) -> Tensor:
    """One int64 a parameter, (P,), equal for bit-equal parameters: a sum of their bits, each weighed by its place."""
    return torch.stack([_bits_sum(parameter.detach()) for parameter in net.parameters()])


def _bits_sum(values: Tensor) -> Tensor:
    bits = values.contiguous().view(-1).view(_BITS[values.element_size()]).to(torch.int64)
    places = torch.arange(len(bits), device=bits.device) * 2 + 1  # odd, so that no weight loses low bits
    return (bits * places).sum()


def refuse_desync(net: nn.Module, name: str, fingerprints: Tensor) -> None:
    """`fingerprints`: (world, P), one row a worker. Raises DesyncError naming the first parameter that differs."""
    differing = (fingerprints != fingerprints[0]).any(dim=0)
    for (parameter, _), differs in zip(net.named_parameters(), differing.tolist(), strict=True):
        if differs:
            raise DesyncError(f"workers hold different weights of {name}.{parameter}; their gradients were not shared")
