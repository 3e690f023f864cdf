"""What a worker does about the notice that its node goes: when it looks, when it leaves."""

import time
from itertools import pairwise

import pytest
import ray.train
from ray.train import PreemptionInfo

from infra.ray_train import preemption
from infra.ray_train.preemption import RESERVE, Preemption


@pytest.fixture()
def notice(monkeypatch):
    """A worker alone; the notice is what the test puts into the list. `seen` counts the looks for one."""
    heard, seen = [], []
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: (seen.append(1), heard[-1] if heard else None)[1])
    monkeypatch.setattr(preemption, "broadcast_from_rank_zero", lambda value: value)
    return heard, seen


def info(seconds_left: float | None) -> PreemptionInfo:
    deadline = None if seconds_left is None else int((time.time() + seconds_left) * 1000)
    return PreemptionInfo(deadline_ms=deadline, preempted_node_to_ranks={"node": [0]})


def test_without_a_notice_it_looks_about_once_a_second(notice, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    leave = Preemption()
    looked = []
    for step in range(1, 201):
        clock[0] += 0.05  # twenty steps a second
        before = len(notice[1])
        assert not leave(step)
        if len(notice[1]) > before:
            looked.append(step)
    assert looked[:2] == [1, 2], "the pace is not known yet"
    assert {later - earlier for earlier, later in pairwise(looked[1:])} <= {19, 20}


def test_far_from_the_deadline_it_trains_on_and_leaves_in_time(notice, monkeypatch):
    clock = [time.time()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "time", lambda: clock[0])
    leave = Preemption()
    assert not leave(1)
    notice[0].append(info(RESERVE + 10))
    for step in range(2, 1000):
        clock[0] += 0.05
        if leave(step):
            break
    assert step == pytest.approx(10 / 0.05, abs=21), "not at once, and not in the time that a save needs"
    assert clock[0] <= leave.deadline - RESERVE + 1.0


def test_the_reserve_follows_how_long_saves_take(notice):
    leave = Preemption()
    leave.saved(20.0)
    notice[0].append(info(50))
    assert leave(1)


def test_a_notice_without_deadline_is_obeyed_at_once(notice):
    notice[0].append(info(None))
    assert Preemption()(1)


def test_a_node_that_stays_after_all_does_not_hold_the_run_for_ever(monkeypatch):
    leave = Preemption()
    leave.deadline = time.time() - preemption.PATIENCE
    with pytest.raises(RuntimeError, match="was to be taken away, and was not"):
        leave.wait_for_the_end()
