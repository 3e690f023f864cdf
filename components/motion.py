"""The law that moving sprites obey: each axis at a constant speed, thrown back at the walls without loss.

Shared by the source that draws them (components/sources/moving_digits.py) and the figure that holds films against it
(components/metrics/trajectories.py). Places are pixels, (y, x), of a sprite's upper left corner.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPEED, ROOM = "speed", "room"  # statistics of a data set whose films obey it: pixels a frame; how far down and right
COMPASS = {  # (down, right)
    "up": (-1, 0),
    "up and right": (-1, 1),
    "right": (0, 1),
    "down and right": (1, 1),
    "down": (1, 0),
    "down and left": (1, -1),
    "left": (0, -1),
    "up and left": (-1, -1),
}


def velocities(speed: float) -> Tensor:
    """(8, 2) pixels a frame along each axis, of the directions of COMPASS."""
    return speed * torch.tensor(list(COMPASS.values()), dtype=torch.float64)


def reflected(places: Tensor, room: Tensor | float) -> Tensor:
    """Places (...) of a way that knows no walls, folded into [0, room]."""
    room = torch.as_tensor(room, dtype=places.dtype)
    around = places.remainder(2 * room.clamp(min=1e-9))
    return torch.minimum(around, 2 * room - around).clamp(min=0)


def path(start: Tensor, velocity: Tensor, frames: int, room: Tensor | float) -> Tensor:
    """Starts (..., 2) and velocities (..., 2) -> places at each frame (..., frames, 2)."""
    times = torch.arange(frames, dtype=start.dtype)[:, None]
    return reflected(start[..., None, :] + times * velocity[..., None, :], room)
