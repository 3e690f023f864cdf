"""Crops: where they lie is what is told of it, they are a function of (seed, step, row), and no batch mixes sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.conditioning.sizes import told_sizes
from components.data import crops
from components.data.crops import CropConfig, Placed, image_columns, nearest
from components.data.dataset import Batch, Dataset, batches, verify, write_buckets, write_manifest
from components.data.info import data_info
from components.data.media.image import MEDIUM
from components.data.randomness import Draws
from components.errors import DataError

MAIN = (16, 16)
CONFIG = CropConfig(cover=1.25, frame=1.5, aspect=2.0)


def ramp(height: int, width: int) -> Image.Image:
    """An image whose values tell where one is in it: red from the left, green from the top."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.stack([np.tile(across, (height, 1)), np.tile(down[:, None], (1, width)), np.zeros((height, width))], 2)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def write(folder: Path, raws: list[tuple[int, int]], config: CropConfig = CONFIG, rows_per_shard: int = 3) -> Dataset:
    """A data set of ramps of these sides, numbered by `label`."""
    folder.mkdir(parents=True)
    rows = (
        image_columns(ramp(*raw), (3, *MAIN), config) | {"label": np.array(number)} for number, raw in enumerate(raws)
    )
    buckets = write_buckets(folder, rows, rows_per_shard)
    sizes = config.sizes(MAIN)
    write_manifest(
        folder,
        [shard for part in buckets.values() for shard in part],
        {sizes[number]: len(part) for number, part in buckets.items()},
        value_range=(0, 255),
    )
    verify(folder)
    return Dataset(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    raws = [(32, 32), (20, 40), (50, 30), (16, 17), (64, 64), (90, 41), (31, 64)] * 3
    return write(tmp_path_factory.mktemp("crops") / "set", raws)


def test_buckets_have_about_the_same_area_and_an_image_goes_to_the_nearest_aspect():
    assert CropConfig(aspect=2, step=8).sizes((64, 64)) == ((64, 64), (48, 88), (88, 48), (56, 72), (72, 56))
    assert CropConfig(aspect=1.5).sizes((64, 64)) == ((64, 64), (56, 72), (72, 56))
    assert CropConfig().sizes((48, 64)) == ((48, 64),)
    for sizes in (CropConfig(aspect=4, step=step).sizes((128, 128)) for step in (8, 16, 32)):
        areas = np.array([height * width for height, width in sizes])
        assert (abs(areas / 128**2 - 1) < 0.25).all()
    sizes = CONFIG.sizes(MAIN)
    assert sizes == ((16, 16),), "8 x 32 is longer than 2 : 1"
    sizes = CropConfig(aspect=2, step=4).sizes(MAIN)
    assert [sizes[nearest(raw, sizes)] for raw in ((100, 100), (100, 190), (500, 100))] == [
        (16, 16),
        (12, 20),
        (20, 12),
    ]


@settings(max_examples=60, deadline=None)
@given(raw=st.tuples(st.integers(1, 300), st.integers(1, 300)), cover=st.floats(1, 3), more=st.floats(0, 2))
def test_the_kept_middle_covers_a_crop(raw, cover, more):
    placed = Placed.of(raw, (16, 24), cover, cover + more)
    for resized, kept, start, side in zip(placed.resized, placed.kept, placed.start, (16, 24), strict=True):
        assert side <= kept <= resized and 0 <= start <= resized - kept
    scales = [whole / own for whole, own in zip(placed.resized, raw, strict=True)]
    assert placed.resized == (16, 24) or abs(scales[0] * raw[0] - scales[1] * raw[0]) <= 1 + raw[0] / raw[1]


def test_who_asks_for_no_crops_gets_the_image_as_ever_with_what_it_leaves_out():
    image = ramp(20, 40)
    columns = image_columns(image, (3, *MAIN), CONFIG)
    assert np.array_equal(columns["image"], image_columns(image, (3, *MAIN), None)["image"])
    assert columns["raw_size"].tolist() == [20, 40]
    assert columns["crop"].tolist() == [0, 8, 0, 8], "of 16 x 32, the middle"


def test_a_crop_shows_what_lies_where_it_says(dataset):
    """The ramps' values give the place in the image; `crop` must say the same, up to the resampling."""
    (bucket,) = dataset.buckets
    rows = torch.tensor(bucket)
    seen = dataset.crops(rows, Draws.of(0, 5, rows))
    assert seen["image"].shape == (21, 3, *MAIN) and seen["image"].dtype == torch.uint8
    resized = seen["crop"][:, :2] + seen["crop"][:, 2:] + torch.tensor(MAIN)
    for axis, channel, along in ((1, 0, -1), (0, 1, -2)):
        where = seen["image"][:, channel].float().mean(-2 if along == -1 else -1)  # (B, side)
        middle = where.mean(1) / 255
        expected = (seen["crop"][:, axis] + MAIN[axis] / 2) / resized[:, axis]
        assert (middle - expected).abs().max() < 0.05
    assert (seen["crop"] >= 0).all() and len(seen["crop"][:, 0].unique()) > 3
    square = (seen["raw_size"][:, 0] == seen["raw_size"][:, 1]).nonzero()[:, 0]
    assert (resized[square] == 20).all(), "a square covers a crop 1.25 times"


def test_crops_reach_every_place_of_the_frame(dataset):
    rows = torch.zeros(500, dtype=torch.int64)
    assert dataset.take(rows[:1])["label"] == 0, "a square, of 20 pixels a side"
    cut = dataset.crops(rows, Draws.of(0, 0, torch.arange(500)))["crop"]
    assert set(map(tuple, cut[:, :2].tolist())) == {(top, left) for top in range(5) for left in range(5)}


def test_a_long_image_loses_its_ends_beyond_the_frame(tmp_path):
    dataset = write(tmp_path / "set", [(16, 160)] * 2, CropConfig(frame=2))
    rows = torch.zeros(300, dtype=torch.int64)
    cut = dataset.crops(rows, Draws.of(0, 0, torch.arange(300)))["crop"]
    assert (cut[:, 1].min(), cut[:, 1].max()) == (64, 80) and (cut[:, 1] + cut[:, 3] == 144).all()
    assert (cut[:, [0, 2]] == 0).all()


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory) -> Dataset:
    raws = [(32, 32), (20, 40), (40, 20), (30, 32)] * 8
    return write(tmp_path_factory.mktemp("buckets") / "set", raws, CONFIG.model_copy(update={"step": 4}))


def test_a_batch_is_of_one_bucket_and_the_same_on_any_number_of_workers_from_any_step_on(bucketed):
    assert data_info(bucketed.manifest).crops == ((16, 16), (12, 20), (20, 12))
    assert [len(rows) for rows in bucketed.buckets] == [16, 8, 8]
    stream = batches(bucketed, 5, seed=4, crops=True)
    found = [next(stream) for _ in range(9)]
    assert len({tuple(batch.columns["image"].shape[2:]) for batch in found}) > 1
    for step, batch in enumerate(found):
        for world in (1, 2, 3):
            parts = [next(batches(bucketed, 5, rank, world, 4, step, crops=True)) for rank in range(world)]
            for name, values in batch.columns.items():
                assert torch.equal(torch.cat([part.columns[name] for part in parts]), values), name


def test_one_size_is_drawn_in_the_order_of_whole_images(dataset):
    plain, cropped = (batches(dataset, 4, seed=1, crops=crops) for crops in (False, True))
    for _ in range(5):
        assert torch.equal(next(plain).columns["label"], next(cropped).columns["label"])


def test_rows_of_all_buckets_are_read_together_as_images(bucketed):
    found = bucketed.take(torch.arange(len(bucketed)))
    assert found["image"].shape == (32, 3, *MAIN) and sorted(found["label"].tolist()) == list(range(32))
    assert set(found) == {"image", "label", "raw_size", "crop"}


def test_the_mirrored_are_told_what_their_mirror_image_lacks_at_the_left():
    draws = Draws.of(0, 0, torch.arange(64))
    columns = {"crop": torch.tensor([[1, 2, 3, 4]]).repeat(64, 1), "raw_size": torch.tensor([[9, 8]]).repeat(64, 1)}
    batch = Batch(columns, draws)
    raw, cut = told_sizes(batch, flips=True)
    assert raw.dtype == cut.dtype == torch.float32 and (raw == torch.tensor([9.0, 8.0])).all()
    assert torch.equal(cut[:, 1] == 4, batch.mirrored) and set(cut[:, 1].tolist()) == {2, 4} and (cut[:, 0] == 1).all()
    assert (told_sizes(batch, flips=False)[1][:, 1] == 2).all()


def test_crops_made_beforehand_are_chosen_by_the_draws():
    columns = crops.views([{"mean": np.full((6, 2), view), "crop": np.full((6, 4), view)} for view in range(3)])
    rows = {name: torch.from_numpy(values) for name, values in columns.items()}
    found = [crops.taken(rows, (1, 1), Draws.of(0, step, torch.arange(6))) for step in range(20)]
    assert all(torch.equal(one["mean"][:, 0], one["crop"][:, 0]) for one in found)
    assert torch.cat([one["mean"] for one in found]).unique().tolist() == [0, 1, 2]


def test_a_set_without_crops_is_refused(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{MEDIUM.column: np.zeros((1, 8, 8), np.uint8)}] * 3
    shards = write_buckets(folder, rows, 3)[0]
    write_manifest(folder, shards, value_range=(0, 255))
    assert "buckets" not in (folder / "manifest.json").read_text()
    with pytest.raises(DataError, match=r"holds no crops; expected data\.crops"):
        next(batches(Dataset(folder), 2, crops=True))
