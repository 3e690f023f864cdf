"""Films of moving digits: what is seen is exact by seed and row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from components import sources
from components.config import parse
from components.data.media import medium
from components.errors import ConfigError, DataError
from components.metrics.trajectories import trajectory_errors
from components.motion import COMPASS
from components.sources import DataConfig, MovingConfig
from components.sources.moving_digits import drawn

CLASSES = ("nought", "one")


def source(seed: int = 0, **block) -> sources.Source:
    return sources.read(parse(DataConfig, {"source": "moving_digits", **block}, "data"), seed)


def rows(count: int = 12, split: str = "train", **options) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(source(**options).splits[split](), count))


def test_rows_are_functions_of_seed_split_and_number():
    first, again = rows(), rows()
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    assert not any(np.array_equal(a["motion"], b["motion"]) for a, b in zip(first, rows(seed=1), strict=True))
    fewer = rows(3, moving={"films": 1})
    for one, same in zip(fewer, first[::4], strict=True):
        assert np.array_equal(one["video"], same["video"]), "more films of an image change none of the others"
    assert not np.array_equal(rows(1, "test")[0]["motion"], first[0]["motion"])


def test_rows_hold_what_they_say():
    made, found = source(), rows(40)
    assert made.medium == "video" and made.rate == 8 and made.captions
    assert made.statistics == {"speed": (1.0,), "room": (6.0, 6.0)}
    for row in found:
        caption = bytes(row["caption"]).rstrip(b"\0").decode()
        name, direction = caption.split(" moving ")
        down, right = COMPASS[direction]
        assert name == made.classes[row["label"]] and row["motion"][2:].tolist() == [down, right]
        medium("video").refuse_unfit(row["video"].shape, "row")
        assert row["video"].shape == (1, 9, 16, 16) and row["video"].dtype == np.uint8
    films = torch.from_numpy(np.stack([row["video"] for row in found]))
    assert trajectory_errors(medium("video").to_floats(films), 1.0, (6.0, 6.0)).max() < 0.05


def test_images_of_the_test_split_are_in_no_film_of_the_training_split():
    still = sources.read(DataConfig(image_size=10), 0)
    for split in ("train", "test"):
        sprite = next(still.splits[split]())["image"]
        row = rows(1, split)[0]
        assert np.array_equal(
            drawn(sprite, np.array([row["motion"][:2]], np.float64), (16, 16))[:, 0], row["video"][:, 0]
        )


def test_frames_sides_and_colours_are_asked_for():
    row = rows(1, image_size=[24, 20], frames=5, frame_rate=12, channels=3, moving={"side": 8, "speed": 2.5})[0]
    assert row["video"].shape == (3, 5, 24, 20) and abs(row["motion"][2:]).max() == 2.5
    for block, told in (
        ({"frames": 8}, r"data.frames: expected 1, 5, 9, ... frames, found 8"),
        ({"moving": {"side": 16}}, r"data.moving.side: expected a sprite smaller than the frame, found 16"),
    ):
        with pytest.raises(DataError, match=told):
            rows(1, **block)
    with pytest.raises(ConfigError, match=r"data\.moving\.speed"):
        source(moving={"speed": 0})
    with pytest.raises(ConfigError, match="medium: source moving_digits knows its own"):
        source(medium="video")


def test_a_folder_of_clips_is_read_as_one_of_images(tmp_path):
    of = medium("video")
    for number, name in enumerate(CLASSES * 3):
        (tmp_path / name).mkdir(exist_ok=True)
        row = torch.full((1, 5, 16, 16), number / 6 - 0.5)
        (tmp_path / name / f"{number}.gif").write_bytes(of.encode(row, "gif"))
    (tmp_path / "one" / "broken.mp4").write_bytes(b"nothing")
    block = {"source": "folder", "medium": "video", "path": tmp_path, "frames": 5, "max_rejected": 1}
    found = sources.read(parse(DataConfig, block, "data"), 0)
    items = [item for split in found.splits.values() for item in split()]
    films = [item["video"] for item in items if isinstance(item, dict)]
    assert found.classes == CLASSES and found.medium == "video" and len(films) == 6
    assert all(film.shape == (1, 5, 16, 16) for film in films)
    (rejected,) = [item for item in items if not isinstance(item, dict)]
    assert rejected.path == "one/broken.mp4" and "not a video that FFmpeg reads" in rejected.reason


def test_settings_have_their_bounds():
    assert MovingConfig().films == 4
    with pytest.raises(ValueError, match="side"):
        MovingConfig(side=4)
