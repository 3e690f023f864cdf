"""Nets that keep rows between calls: slots are leased for a trajectory's life, rows at different positions share a
forward, and neither company nor padding nor failure changes what a trajectory reads back."""

import time

import pytest
import torch
from torch import nn

from components.sampling.engine import DeadlineExceeded, Engine, EngineFull, EngineStopped
from components.sampling.state import Cache
from components.sampling.trajectories import Call, drive
from tests.components.gate import TIMEOUT

LENGTH, WIDTH = 8, 6


class CausalAttention(nn.Module):
    """One head whose keys and values are kept: x (B, WIDTH) at `position` (B,) attends to all positions up to it."""

    row_bytes = 2 * LENGTH * WIDTH * 4

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.positions = []  # of each forward

    def allocate(self, rows):
        return torch.full((rows, 2, LENGTH, WIDTH), 7.0)  # what others left

    def forward(self, x, position, cache, slot):
        if (x == 666).any():
            raise RuntimeError("cannot be answered")
        assert len(slot.unique()) == len(slot) or (slot == len(cache) - 1).any()
        self.positions.append(position.tolist())
        # row by row, so that the same numbers meet whatever the batch
        q, k, v = torch.stack([self.project(row[None])[0] for row in x]).chunk(3, dim=1)
        cache[slot, 0, position], cache[slot, 1, position] = k, v
        answer = []
        for row, at in enumerate(position.tolist()):
            keys, values = cache[slot[row], :, : at + 1]
            answer.append(torch.softmax(keys @ q[row], 0) @ values)
        return {"x": torch.stack(answer), "twice": 2 * torch.stack(answer)}


def written(seed, steps=5, rows=1, fails_at=None):
    """A trajectory that writes position after position, each made of the answer before."""

    def start():
        x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
        for position in range(steps):
            if position == fails_at:
                x = torch.full_like(x, 666)
            answer = yield Call("net", {"x": x, "position": torch.full((rows,), position)}, stateful=True)
            assert torch.equal(answer["twice"], 2 * answer["x"])
            x = answer["x"] + x
        return x

    return start


def alone(*args, **kwargs):
    return drive(written(*args, **kwargs)(), {"net": CausalAttention()})


@pytest.fixture
def net():
    return CausalAttention()


def engine_of(net, **options):
    return Engine({"net": net}, **options)


@pytest.mark.parametrize("buckets", [(), (4, 8), (16,)])
def test_together_as_alone_whatever_the_padding(net, buckets):
    engine = engine_of(net, buckets=buckets)
    asked = [(seed, 2 + seed % 4, 1 + seed % 2) for seed in range(6)]
    futures = [engine.submit(written(*each), rows=each[2]) for each in asked]
    for each, future in zip(asked, futures, strict=True):
        assert torch.equal(future.result(TIMEOUT), alone(*each))
    assert engine.load().kept == 0
    engine.stop(timeout=TIMEOUT)


def test_rows_at_different_positions_share_a_forward(net):
    engine, late = engine_of(net), []

    def leading():
        inner = written(1, 6)()
        call = next(inner)
        for step in range(6):
            if step == 3:
                late.append(engine.submit(written(2, 4)))
            try:
                call = inner.send((yield call))
            except StopIteration as stop:
                return stop.value

    assert torch.equal(engine.submit(leading).result(TIMEOUT), alone(1, 6))
    assert torch.equal(late[0].result(TIMEOUT), alone(2, 4))
    assert any(len(set(positions)) > 1 for positions in net.positions)
    engine.stop(timeout=TIMEOUT)


def test_nothing_leaks_after_a_thousand_cancellations(net):
    engine = engine_of(net, slots=8, queue=2000)
    content = engine._caches["net"].content
    before = (content.data_ptr(), content.shape)
    futures = [engine.submit(written(seed, LENGTH)) for seed in range(1000)]
    for future in futures:
        future.cancel()
    assert torch.equal(engine.submit(written(5)).result(TIMEOUT), alone(5))
    _settled(engine)
    content, cache = engine._caches["net"].content, engine._caches["net"]
    assert sorted(cache._free) == list(range(8)) and (content.data_ptr(), content.shape) == before
    engine.stop(timeout=TIMEOUT)


def _settled(engine):
    until = time.monotonic() + TIMEOUT
    while engine.load().active + engine.load().waiting and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.load().kept == 0


def test_a_fault_frees_its_own_slots_and_harms_no_neighbour(net):
    engine = engine_of(net)
    good, bad = engine.submit(written(1, 6)), engine.submit(written(2, 6, fails_at=3))
    with pytest.raises(RuntimeError, match="cannot be answered"):
        bad.result(TIMEOUT)
    assert torch.equal(good.result(TIMEOUT), alone(1, 6))
    _settled(engine)
    engine.stop(timeout=TIMEOUT)


def test_slots_are_freed_by_a_deadline_and_by_stopping(net):
    engine = engine_of(net)

    def slow():
        inner = written(1, LENGTH)()
        call = next(inner)
        while True:
            answer = yield call
            time.sleep(0.05)
            call = inner.send(answer)

    with pytest.raises(DeadlineExceeded):
        engine.submit(slow, deadline=time.monotonic() + 0.1).result(TIMEOUT)
    _settled(engine)
    waiting = engine.submit(slow)
    engine.stop(timeout=TIMEOUT)
    with pytest.raises(EngineStopped):
        waiting.result(TIMEOUT)
    assert engine._caches["net"].leased == 0


def test_beyond_the_caches_rows_trajectories_wait_and_then_find_it_full(net):
    engine = engine_of(net, slots=16, queue=2, cache_rows=3)
    assert engine.load().slots == 3 and engine.load().cache_rows == 3

    def held():
        time.sleep(0.2)
        return (yield from written(1)())

    futures = [engine.submit(held)] + [engine.submit(written(seed)) for seed in range(4)]
    with pytest.raises(EngineFull):
        engine.submit(written(9))
    for seed, future in enumerate(futures[1:]):
        assert torch.equal(future.result(TIMEOUT), alone(seed))
    engine.stop(timeout=TIMEOUT)


def test_a_trajectory_of_more_rows_than_it_told_waits_for_slots(net):
    engine = engine_of(net, slots=8, cache_rows=4)
    futures = [engine.submit(written(seed, 3, rows=3)) for seed in range(4)]  # each told as one row
    for seed, future in enumerate(futures):
        assert torch.equal(future.result(TIMEOUT), alone(seed, 3, 3))
    with pytest.raises(ValueError, match="net: a call of 5 rows that are kept; expected at most 4"):
        engine.submit(written(1, 3, rows=5)).result(TIMEOUT)
    engine.stop(timeout=TIMEOUT)


def test_a_cache_has_a_capacity_in_bytes(net):
    engine = engine_of(net, cache_bytes=5 * net.row_bytes)
    assert engine.load().cache_bytes == 5 * net.row_bytes
    assert engine.load().cache_rows == 4 and len(engine._caches["net"].content) == 5  # one for padding
    engine.stop(timeout=TIMEOUT)
    with pytest.raises(ValueError, match=r"net: two rows of its cache take \d+ bytes; found 100"):
        engine_of(net, cache_bytes=100)


def test_a_call_may_not_grow_and_needs_a_net_that_keeps(net):
    def grows():
        for rows in (1, 2):
            yield Call("net", {"x": torch.zeros(rows, WIDTH), "position": torch.zeros(rows).long()}, stateful=True)

    def nothing_kept():
        yield Call("plain", {"x": torch.zeros(1, WIDTH)}, stateful=True)

    engine = Engine({"net": net, "plain": lambda x: x})
    with pytest.raises(ValueError, match="expected at most 1"):
        engine.submit(grows).result(TIMEOUT)
    with pytest.raises(ValueError, match="plain: keeps no rows"):
        engine.submit(nothing_kept).result(TIMEOUT)
    with pytest.raises(ValueError, match="expected at most 1"):
        drive(grows(), {"net": net})
    engine.stop(timeout=TIMEOUT)


def test_slots_come_back_in_any_order():
    cache = Cache(CausalAttention(), 4)
    first, second = cache.lease(2), cache.lease(2)
    cache.free(second)
    assert cache.leased == 2 and set(cache.lease(2).tolist()) == set(second.tolist())
    cache.free(first)
    assert cache.num_free == 2
