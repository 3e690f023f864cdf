"""Films of one real digit, or piece of clothing, that moves over a dark ground and is thrown back at its edges, by
components/motion.py (in the manner of Srivastava et al. 2015, section 4.1, with places between pixels).

What is seen is a function of the seed, the split, the number of the image and of its film, so that more films of an
image change none of the others. An image of the test split is in no film of the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from components.data.media.image import MEDIUM as IMAGES
from components.data.media.video import MEDIUM as VIDEOS
from components.data.randomness import Draws
from components.errors import DataError
from components.motion import COMPASS, ROOM, SPEED, path, velocities
from components.sources import MovingConfig

MOTION = "motion"  # the column of a film's start and velocity: y, x, down, right


def rows(
    sprites: Callable[[], Iterator[dict[str, np.ndarray]]],
    classes: tuple[str, ...],
    config: MovingConfig,
    shape: tuple[int, ...],
    seed: int,
    split: str,
) -> Iterator[dict[str, np.ndarray]]:
    """Films of each sprite of a split, with class, caption and motion."""
    length = max(len(_caption(name, direction)) for name in classes for direction in COMPASS)
    frames, room = shape[1], _room(shape, config.side)
    for number, row in enumerate(sprites()):
        films = torch.arange(config.films)
        draws = Draws.of(seed, number, films).fold(split)
        start = draws.uniform("start", (2,)).double() * room
        direction = draws.integers("direction", len(COMPASS))
        velocity = velocities(config.speed)[direction]
        places = path(start, velocity, frames, room).numpy()
        for film in films.tolist():
            caption = _caption(classes[int(row["label"])], list(COMPASS)[direction[film]])
            yield {
                VIDEOS.column: drawn(row[IMAGES.column], places[film], shape[2:]),
                "label": row["label"],
                "caption": np.frombuffer(caption.encode().ljust(length, b"\0"), np.uint8),
                MOTION: torch.cat([start[film], velocity[film]]).float().numpy(),
            }


def drawn(sprite: np.ndarray, places: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """A sprite (C, d, d) uint8 with its corner at places (T, 2) between pixels, bilinear: (C, T, H, W) uint8."""
    channels, side, _ = sprite.shape
    film = np.zeros((channels, len(places), *sides), np.float64)
    for frame, place in enumerate(places):
        low = np.floor(place).astype(int)
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = np.prod(np.where((down, right), place - low, 1 - (place - low)))
            if share > 0:
                top, left = low[0] + down, low[1] + right
                film[:, frame, top : top + side, left : left + side] += share * sprite
    return np.rint(film).astype(np.uint8)


def statistics(config: MovingConfig, shape: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
    """The law's facts, for the manifest."""
    room = tuple(map(float, _room(shape, config.side)))
    return {SPEED: (config.speed,), ROOM: room}


def _room(shape: tuple[int, ...], side: int) -> torch.Tensor:
    """(2,) how far a sprite can go down and right. Raises DataError of one that does not fit."""
    if min(shape[2:]) <= side:
        raise DataError(f"data.moving.side: expected a sprite smaller than the frame, found {side}")
    return torch.tensor([float(length - side) for length in shape[2:]], dtype=torch.float64)


def _caption(name: str, direction: str) -> str:
    return f"{name} moving {direction}"
