"""The order of training rows: permutations without memory, epochs without gaps, shares without overlap."""

from __future__ import annotations

import numpy as np
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.permutation import bucketed_batch, global_batch, permute, share

KEYS = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 3000), key=KEYS)
def test_permute_is_a_bijection(count, key):
    index = torch.arange(count)
    assert torch.equal(permute(index, count, key).sort().values, index)
    assert torch.equal(index, torch.arange(count)), "its argument stays as it was"


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 2**40), key=KEYS, data=st.data())
def test_permute_needs_no_memory_for_large_sets(count, key, data):
    index = torch.tensor(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=50))))
    places = permute(index, count, key)
    assert len(places.unique()) == len(index)
    assert places.min() >= 0
    assert places.max() < count
    assert torch.equal(permute(index[-1:], count, key), places[-1:]), "each index goes its way alone"


def test_permutations_look_random():
    """Over many keys every place goes everywhere, and neighbours part."""
    count, num_keys = 20, 2000
    moved = torch.stack([permute(torch.arange(count), count, key) for key in range(num_keys)]).numpy()
    for place in range(count):
        assert scipy.stats.chisquare(np.bincount(moved[:, place], minlength=count)).pvalue > 1e-5
    steps = (moved[:, 1] - moved[:, 0]) % count
    assert scipy.stats.chisquare(np.bincount(steps, minlength=count)[1:]).pvalue > 1e-5


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 90), seed=st.integers(0, 2**31))
def test_every_epoch_visits_each_row_once(count, batch_size, seed):
    num_epochs = 3
    num_batches = -(-count * num_epochs // batch_size)
    rows = torch.cat([global_batch(step, batch_size, count, seed) for step in range(num_batches)])
    assert len(rows) == num_batches * batch_size
    for epoch in range(num_epochs):
        assert torch.equal(rows[epoch * count : (epoch + 1) * count].sort().values, torch.arange(count))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 90), step=st.integers(0, 10**9))
def test_batch_size_does_not_change_the_order(count, batch_size, step):
    ones = torch.cat([global_batch(step * batch_size + place, 1, count, 3) for place in range(batch_size)])
    assert torch.equal(global_batch(step, batch_size, count, 3), ones)


def test_epochs_and_seeds_differ():
    first, second = global_batch(0, 100, 100, 0), global_batch(1, 100, 100, 0)
    other = global_batch(0, 100, 100, 1)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.arange(100))


@given(batch_size=st.integers(1, 500), world=st.integers(1, 64))
def test_shares_partition_the_batch_evenly(batch_size, world):
    rows = list(range(batch_size))
    parts = [rows[share(batch_size, rank, world)] for rank in range(world)]
    assert [row for part in parts for row in part] == rows
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(step=st.integers(0, 50), batch_size=st.integers(1, 40), count=st.integers(1, 60), rank=st.integers(0, 6))
def test_a_part_of_a_batch_is_drawn_alone(step, batch_size, count, rank):
    part = share(batch_size, rank, 7)
    assert torch.equal(global_batch(step, batch_size, count, 0, part), global_batch(step, batch_size, count, 0)[part])


COUNTS = st.lists(st.integers(1, 60), min_size=2, max_size=5).map(tuple)


@settings(max_examples=15, deadline=None)
@given(counts=COUNTS, batch_size=st.integers(1, 20), seed=st.integers(0, 2**31), epochs=st.integers(1, 3))
def test_every_epoch_has_the_batches_of_each_bucket_that_end_in_it(counts, batch_size, seed, epochs):
    ends = [sum(epoch * count // batch_size for count in counts) for epoch in range(epochs + 1)]
    found = [bucketed_batch(step, batch_size, counts, seed) for step in range(ends[-1])]
    seen = [torch.zeros(count, dtype=torch.int64) for count in counts]
    for bucket, rows in found:
        assert len(rows) == batch_size
        seen[bucket] += torch.bincount(rows, minlength=counts[bucket])
    for epoch in range(epochs):
        buckets = [bucket for bucket, _ in found[ends[epoch] : ends[epoch + 1]]]
        for bucket, count in enumerate(counts):
            assert buckets.count(bucket) == (epoch + 1) * count // batch_size - epoch * count // batch_size
    for times in seen:
        assert epochs - 1 - batch_size // len(times) <= times.min() <= times.max() <= epochs, (
            "no row is seen twice as often"
        )


@settings(max_examples=10, deadline=None)
@given(
    counts=st.lists(st.integers(1, 2**30), min_size=2, max_size=20).map(tuple),
    step=st.integers(0, 2**40),
    batch_size=st.integers(1, 16),
    data=st.data(),
)
def test_a_batch_of_a_bucket_far_on_is_found_at_once_and_shared_out(counts, step, batch_size, data):
    world = data.draw(st.integers(1, batch_size))
    bucket, rows = bucketed_batch(step, batch_size, counts, 3)
    assert 0 <= rows.min() <= rows.max() < counts[bucket]
    parts = [bucketed_batch(step, batch_size, counts, 3, share(batch_size, rank, world)) for rank in range(world)]
    assert {part[0] for part in parts} == {bucket}
    assert torch.equal(torch.cat([part[1] for part in parts]), rows)


def test_buckets_come_in_turns_by_their_sizes_and_another_seed_turns_them_otherwise():
    counts = (300, 100, 200)
    orders = [[bucketed_batch(step, 4, counts, seed)[0] for step in range(150)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    shares = np.array([[order[:75].count(bucket) for bucket in range(3)] for order in orders])
    assert (abs(shares - [37.5, 12.5, 25]) < 12).all(), "in any part of an epoch, too"
