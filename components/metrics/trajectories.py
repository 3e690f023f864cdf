"""How far films of a moving sprite are from the law of motion that it should obey (components/motion.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from components.metrics.figures import Definition
from components.motion import reflected

TRAJECTORY_ERROR = Definition(
    name="trajectory_error",
    label="trajectory error",
    group="motion",
    explanation="how far a sprite is from the nearest lawful way, in pixels; a mean over frames and films",
    kind="distance",
    better="lower",
    unit="px",
)
_STARTS, _REFINED = 61, 9  # places of a start that are tried: over all the room, then around the best
_CHUNK = 64  # films at once


def centres(rows: Tensor) -> Tensor:
    """Where the light of films (N, C, T, H, W) in [-1, 1] lies, (N, T, 2) as y, x in pixels: the mean place, weighted
    by brightness above black. A frame without light has its middle."""
    light = (rows.double().mean(1) + 1) / 2  # (N, T, H, W)
    light = torch.where(light > 0.05, light, 0.0) + 1e-9  # what noise a decoder leaves would draw it to the middle
    total = light.sum((2, 3))
    height, width = light.shape[2:]
    down = (light.sum(3) @ torch.arange(height, dtype=torch.float64)) / total
    right = (light.sum(2) @ torch.arange(width, dtype=torch.float64)) / total
    return torch.stack([down, right], dim=2)


def trajectory_errors(rows: Tensor, speed: float, room: tuple[float, float]) -> Tensor:
    """(N,) mean distance in pixels between a film's centres and the nearest way that a sprite can take: from any start
    in `room`, in one of eight directions, `speed` pixels a frame along each axis that it moves on. Where the sprite's
    centre lies in its square is fitted too, so that a film of the law itself has no error but that of its rounding."""
    found = centres(rows)
    return torch.cat([_errors(part, speed, room) for part in found.split(_CHUNK)])


def _errors(found: Tensor, speed: float, room: tuple[float, float]) -> Tensor:
    """Of centres (N, T, 2)."""
    by_axis = [_misfits(found[..., axis], speed, room[axis]) for axis in (0, 1)]  # each (N, 3, T): of each velocity
    both = (by_axis[0][:, :, None].square() + by_axis[1][:, None].square()).sqrt().mean(-1)  # (N, 3, 3)
    both[:, 1, 1] = torch.inf  # a sprite that stands still obeys no law
    return both.flatten(1).amin(1)


def _misfits(found: Tensor, speed: float, room: float) -> Tensor:
    """Centres (N, T) of one axis -> (N, 3, T), how far they are off the best way of each velocity -speed, 0, speed."""
    times = torch.arange(found.shape[1], dtype=found.dtype)
    velocity = speed * torch.tensor([-1.0, 0.0, 1.0], dtype=found.dtype)
    starts = torch.linspace(0, room, _STARTS, dtype=found.dtype)
    best = _best(found, starts.expand(len(found), 3, -1), velocity, times, room)[1]
    step = room / (_STARTS - 1)
    around = best[..., None] + step * torch.linspace(-1, 1, _REFINED, dtype=found.dtype)
    return _best(found, around.clamp(0, room), velocity, times, room)[0]


def _best(found: Tensor, starts: Tensor, velocity: Tensor, times: Tensor, room: float) -> tuple[Tensor, Tensor]:
    """Of starts (N, 3, S) tried for each velocity: how far off the best is at each frame, (N, 3, T), and which, (N, 3).
    The sprite's centre in its square is their mean difference."""
    ways = reflected(starts[..., None] + velocity[:, None, None] * times, room)  # (N, 3, S, T)
    off = found[:, None, None] - ways
    off = off - off.mean(-1, keepdim=True)
    chosen = off.square().sum(-1).argmin(-1)
    misfit = off.gather(2, chosen[..., None, None].expand(-1, -1, 1, off.shape[-1]))[:, :, 0]
    return misfit, starts.gather(2, chosen[..., None])[..., 0]
