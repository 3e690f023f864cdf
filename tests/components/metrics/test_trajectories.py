"""Films against the law of motion that their sprites should obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.metrics.trajectories import centres, trajectory_errors
from components.motion import path, reflected, velocities
from components.sources.moving_digits import drawn

ROOM, SPEED = (9.0, 6.0), 1.25


def films(off: float = 0.0, count: int = 16, still: bool = False) -> torch.Tensor:
    """Films (count, 1, 9, 16, 13) of a lopsided sprite on lawful ways, each frame moved by up to `off` pixels."""
    generator = torch.Generator().manual_seed(5)
    sprite = torch.zeros(1, 7, 7)
    sprite[0, 1:6, 2:4], sprite[0, 4:6, 2:6] = 250, 120
    room = torch.tensor(ROOM, dtype=torch.float64)
    start = torch.rand(count, 2, generator=generator, dtype=torch.float64) * room
    velocity = 0 * start if still else velocities(SPEED)[torch.arange(count) % 8]
    places = path(start, velocity, 9, room)
    places = (places + off * (2 * torch.rand(places.shape, generator=generator, dtype=torch.float64) - 1)).clamp(min=0)
    places = torch.minimum(places, room)
    made = [drawn(sprite.numpy().astype(np.uint8), one.numpy(), (16, 13)) for one in places]
    return torch.from_numpy(np.stack(made)).float() / 127.5 - 1


def test_walls_throw_back():
    ways = torch.tensor([-1.5, 0.0, 2.0, 5.0, 6.0, 7.0, 11.0, 12.5], dtype=torch.float64)
    assert reflected(ways, 6.0).tolist() == [1.5, 0.0, 2.0, 5.0, 6.0, 5.0, 1.0, 0.5]
    found = path(torch.tensor([5.0, 1.0]), torch.tensor([1.0, -1.0]), 4, torch.tensor([6.0, 6.0]))
    assert found.tolist() == [[5.0, 1.0], [6.0, 0.0], [5.0, 1.0], [4.0, 2.0]]


def test_the_centre_follows_the_sprite_between_pixels():
    sprite = np.full((1, 4, 4), 200, np.uint8)
    places = np.array([[0.0, 0.0], [2.25, 3.5], [6.0, 5.0]])
    found = centres(torch.from_numpy(drawn(sprite, places, (10, 9)))[None].float() / 127.5 - 1)
    assert torch.allclose(found[0], torch.from_numpy(places) + 1.5, atol=0.02)


def test_lawful_films_have_no_error_and_others_theirs():
    lawful = trajectory_errors(films(), SPEED, ROOM)
    assert lawful.max() < 0.06, "but for the rounding of pixels"
    moved = trajectory_errors(films(off=1.0), SPEED, ROOM)
    assert 0.25 < moved.mean() < 0.8, "a frame is off by 0.76 on average, of which a start takes its part"
    assert trajectory_errors(films(still=True), SPEED, ROOM).mean() > 1, "standing still is no way"
    shuffled = films()[:, :, [4, 0, 7, 2, 8, 1, 6, 3, 5]]
    assert trajectory_errors(shuffled, SPEED, ROOM).mean() > 1.5


@pytest.mark.parametrize("count", [1, 70])
def test_each_film_is_measured_alone(count):
    rows = films(off=0.5, count=count)
    together = trajectory_errors(rows, SPEED, ROOM)
    assert torch.allclose(trajectory_errors(rows[-1:], SPEED, ROOM), together[-1:])
