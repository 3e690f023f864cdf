"""Ways between two sets of points, a share of the way a row, and between the draws of two seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from components.data.randomness import Draws
from components.sampling.requests import Request
from components.shapes import per_row


def slerp(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Points (B, ...) on the arcs between two sets of points (Shoemake 1985), `share` (B,) of the way: between two
    draws of noise it keeps their length, which a straight line would not."""
    a, b = one.flatten(1).double(), other.flatten(1).double()
    angle = torch.acos(F.cosine_similarity(a, b).clamp(-1, 1)).clamp(min=1e-9)
    parts = torch.sin((1 - share) * angle) / torch.sin(angle), torch.sin(share * angle) / torch.sin(angle)
    return (parts[0][:, None] * a + parts[1][:, None] * b).reshape(one.shape).to(one.dtype)


def lerp(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Points (B, ...) on the lines between two sets of points, `share` (B,) of the way."""
    return torch.lerp(one, other, per_row(share.to(one.dtype), one))


def between(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: Tensor) -> dict[str, Tensor]:
    """The same of all that two conditions say, by name."""
    return {name: lerp(one[name], other[name], share) for name in one}


def drawn(request: Request, draw: Callable[[Draws], Tensor]) -> Tensor:
    """Standard normal numbers (B, ...) that `draw` makes of a request's seeds, on the arcs to those of its blend's."""
    blend, found = request.blend, draw(Draws.of_seeds(request.seeds))
    if blend is None or blend.seeds is None:
        return found
    return slerp(found, draw(Draws.of_seeds(blend.seeds)), blend.share)
