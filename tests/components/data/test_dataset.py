import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.dataset import Dataset, batches, read_manifest, verify, write_manifest, write_shard, write_shards
from components.errors import DataError
from components.files import sha256_folder, write_json


def rows_of(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {"image": rng.integers(0, 256, (1, 4, 4), np.uint8), "label": np.array(number, np.int64)}
        for number in range(count)
    ]


def write(folder, rows, rows_per_shard: int):
    folder.mkdir(exist_ok=True)
    shards = write_shards(folder, iter(rows), rows_per_shard)
    return write_manifest(folder, shards, value_range=(0, 255), classes=("a", "b"), source={"source": "test"})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    write(folder, rows_of(23), rows_per_shard=5)
    return Dataset(folder)


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 17), rows_per_shard=st.integers(1, 6))
def test_rows_come_back_as_they_were_written(tmp_path_factory, count, rows_per_shard):
    folder, rows = tmp_path_factory.mktemp("data"), rows_of(count)
    manifest = write(folder, rows, rows_per_shard)
    assert manifest == read_manifest(folder) == verify(folder)
    assert manifest.count == count
    assert [shard.rows for shard in manifest.shards][:-1] == [rows_per_shard] * (len(manifest.shards) - 1)
    found = Dataset(folder).take(np.arange(count))
    for name in ("image", "label"):
        assert np.array_equal(found[name].numpy(), np.stack([row[name] for row in rows]))
    assert found["image"].dtype == torch.uint8 and found["label"].dtype == torch.int64


def test_equal_rows_give_equal_bytes_and_one_changed_pixel_others(tmp_path):
    rows = rows_of(11)
    for name in ("one", "two"):
        write(tmp_path / name, rows, 4)
    rows[7]["image"][0, 0, 0] ^= 1
    write(tmp_path / "changed", rows, 4)
    assert sha256_folder(tmp_path / "one") == sha256_folder(tmp_path / "two") != sha256_folder(tmp_path / "changed")


@given(rows=st.lists(st.integers(0, 22), max_size=40))
def test_take_gives_the_rows_asked_for_across_shards(dataset, rows):
    found = dataset.take(np.array(rows, np.int64))
    assert found["label"].tolist() == rows
    assert found["image"].shape == (len(rows), 1, 4, 4)


@pytest.mark.parametrize("size", [1, 4, 5, 23, 100])
def test_chunks_hold_every_row_in_stored_order(dataset, size):
    labels = [chunk["label"] for chunk in dataset.chunks(size)]
    assert torch.cat(labels).tolist() == list(range(23))
    assert max(map(len, labels)) == min(size, 23)


def test_columns_are_read_alone(dataset):
    assert [sorted(chunk) for chunk in dataset.chunks(20, ("label", "caption"))] == [["label"], ["label"]]
    assert dataset.labels().tolist() == list(range(23))


def test_rows_of_other_columns_are_refused(tmp_path):
    rows = rows_of(3)
    del rows[2]["label"]
    with pytest.raises(DataError, match="rows of image among others of image, label$"):
        write(tmp_path, rows, 1)


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing"])
def test_a_damaged_shard_is_refused_with_its_name(tmp_path, harm):
    write(tmp_path, rows_of(9), 3)
    shard = tmp_path / "00001.image.npy"
    content = shard.read_bytes()
    if harm == "truncated":
        shard.write_bytes(content[:-1])
    elif harm == "altered":
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        shard.unlink()
    with pytest.raises(DataError, match="00001.image.npy"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no manifest.json"),
        ("{", "not valid JSON"),
        ("[]", "schema_version"),
        ('{"schema_version": 99}', "schema_version 1"),
        ('{"schema_version": 1}', "count"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(tmp_path, content, told):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=told) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_manifest_that_counts_other_rows_than_its_shards_have_is_refused(tmp_path):
    write(tmp_path, rows_of(7), 4)
    path = tmp_path / "manifest.json"
    write_json(path, json.loads(path.read_text()) | {"count": 5})
    with pytest.raises(DataError, match="manifest.json: count: 5, where its shards have 7 rows"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"medium": "smell"}, "manifest.json: medium: expected one of .*image.*, found 'smell'"),
        ({}, "manifest.json: columns.image: expected images of 1 or 3 channels, height, width; found "),
    ],
)
def test_rows_that_their_medium_cannot_have_are_refused(tmp_path, facts, told):
    shard = write_shard(tmp_path, 0, {"image": np.zeros((4, 2, 8, 8), np.uint8)})
    write_manifest(tmp_path, [shard], value_range=(0, 255), **facts)
    with pytest.raises(DataError, match=told):
        read_manifest(tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_ranks_of_any_world_share_the_global_batch(dataset, data):
    batch_size = data.draw(st.integers(1, 30))
    world = data.draw(st.integers(1, batch_size))
    start, seed = data.draw(st.integers(0, 50)), data.draw(st.integers(0, 2**31))
    whole = next(batches(dataset, batch_size, seed=seed, start=start))
    parts = [next(batches(dataset, batch_size, rank, world, seed, start)) for rank in range(world)]
    for name, values in whole.columns.items():
        assert torch.equal(torch.cat([part.columns[name] for part in parts]), values)
    assert torch.equal(torch.cat([part.draws.keys for part in parts]), whole.draws.keys)
    means = [part.columns["label"].double().mean() * part.weight for part in parts]
    assert sum(means).item() / world == pytest.approx(whole.columns["label"].double().mean().item())


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_every_epoch_visits_each_row_once(dataset, batch_size, seed):
    num_batches = -(-3 * 23 // batch_size)
    stream = itertools.islice(batches(dataset, batch_size, seed=seed), num_batches)
    labels = torch.cat([batch.columns["label"] for batch in stream]).tolist()
    epochs = [labels[start : start + 23] for start in (0, 23, 46)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_stream_started_later_goes_on_where_another_is(dataset):
    late = itertools.islice(batches(dataset, 4, seed=3, start=5), 4)
    for ours, theirs in zip(late, itertools.islice(batches(dataset, 4, seed=3), 5, 9), strict=True):
        assert torch.equal(ours.columns["image"], theirs.columns["image"])
        assert torch.equal(ours.draws.keys, theirs.draws.keys)


def test_seed_and_step_change_rows_and_draws(dataset):
    first, second = itertools.islice(batches(dataset, 8, seed=0), 2)
    other = next(batches(dataset, 8, seed=1))
    assert first.columns["label"].tolist() != other.columns["label"].tolist()
    keys = torch.cat([first.draws.keys, second.draws.keys, other.draws.keys])
    assert len(keys.unique()) == len(keys)


def test_a_worker_without_a_row_is_refused(dataset):
    with pytest.raises(DataError, match="batch_size 2.*workers 3"):
        next(batches(dataset, 2, rank=0, world=3))
