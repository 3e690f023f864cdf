"""The order of training rows: permutations without memory, epochs without gaps, shares without overlap."""

from __future__ import annotations

import numpy as np
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.permutation import global_batch, permute, share

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
