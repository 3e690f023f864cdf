"""What is accepted, with an engine whose pace is known."""

import time

import pytest

from components.sampling.tasks import EngineFull, Load, Usage
from components.sampling.workload import Work
from infra.serving.admission import LONGEST_HOLD, Admission
from infra.serving.api_error import LONGEST
from infra.serving.orders import SampleRequest


class Paced:
    """An engine that takes a second for each row, and holds what the test says."""

    def __init__(self, backlog=0.0, slots=64, active=1, serial=0.0):
        self.backlog, self.slots, self.active, self.serial = backlog, slots, active, serial

    def load(self):
        return Load(self.active, 0, self.slots, 0)

    def seconds_of(self, works):
        return float(sum(sum(work.rows.values()) for work in works))

    def seconds_to_finish(self, works=()):
        return self.backlog + self.seconds_of(works)

    def seconds_in_turn(self, works):
        return self.serial


def orders(count=1, steps=1, **fields):
    settings = {"solver": "euler", "num_inference_steps": steps, "guidance_scale": 2.0}
    return [SampleRequest(model="m", seed=seed, settings=settings, group="g", **fields) for seed in range(count)]


def admission(engine, deadline=16.0):
    made = Admission(engine, deadline)
    made.learn(orders(steps=1)[0], Usage(0, 1, Work({"net": 1}, {"net": 1})))
    return made


def test_what_can_be_finished_in_time_is_accepted_and_no_more():
    """Of sixteen seconds eight are given away."""
    gate = admission(Paced())
    gate.refuse_unfinishable(orders(count=7))
    with pytest.raises(EngineFull):  # all images of a request or none
        gate.refuse_unfinishable(orders(count=9))
    with pytest.raises(EngineFull):
        gate.refuse_unfinishable(orders(steps=9))
    gate = admission(Paced(backlog=3.0))
    gate.refuse_unfinishable(orders(count=4))
    with pytest.raises(EngineFull) as refused:
        gate.refuse_unfinishable(orders(count=6))
    assert refused.value.retry_after == pytest.approx(1.0, abs=0.1)


def test_who_comes_to_a_long_queue_is_refused_though_it_could_be_finished_in_time():
    admission(Paced(backlog=3.0)).refuse_unfinishable(orders())
    with pytest.raises(EngineFull) as refused:
        admission(Paced(backlog=5.0)).refuse_unfinishable(orders())
    assert refused.value.retry_after == pytest.approx(5 - 0.2 * 16, abs=0.1)


def test_a_request_whose_own_calls_take_too_long_is_refused():
    admission(Paced(serial=12.0)).refuse_unfinishable(orders())
    with pytest.raises(EngineFull) as refused:
        admission(Paced(serial=14.0)).refuse_unfinishable(orders())
    assert refused.value.retry_after == pytest.approx(1.2, abs=0.1)


def test_the_wait_before_the_engine_counts():
    gate = admission(Paced())
    late = orders(count=5, asked_at=time.time() - 8)
    with pytest.raises(EngineFull):
        gate.refuse_unfinishable(late)
    assert gate.seconds_left(late[0]) == pytest.approx(8, abs=0.5)
    assert gate.seconds_left(orders(asked_at=time.time() + 100)[0]) == 16  # another machine's clock


def test_an_idle_engine_takes_what_may_last_too_long():
    admission(Paced(active=0)).refuse_unfinishable(orders(count=100))


def test_rows_are_limited_whatever_they_cost():
    with pytest.raises(EngineFull):
        admission(Paced(slots=1), deadline=1e6).refuse_unfinishable(orders())


def test_each_who_is_refused_is_told_a_later_time():
    gate, told = admission(Paced(backlog=5.2)), []
    for _ in range(40):
        with pytest.raises(EngineFull) as refused:
            gate.refuse_unfinishable(orders(count=2))
        told.append(refused.value.retry_after)
    assert told[:3] == [pytest.approx(seconds, abs=0.1) for seconds in (2, 4, 6)]  # two seconds of work each
    assert told == sorted(told) and told[-1] == LONGEST


@pytest.mark.parametrize(
    "backlog, count, hold",
    [(3.3, 1, 0.33), (33.0, 1, LONGEST_HOLD), (2.0, 7, 0)],
    ids=["a full queue", "a long one", "a large request"],
)
def test_a_refusal_goes_for_all_where_the_queue_is_why(backlog, count, hold):
    with pytest.raises(EngineFull) as refused:
        admission(Paced(backlog=backlog)).refuse_unfinishable(orders(count=count))
    assert refused.value.hold == pytest.approx(hold)


@pytest.mark.parametrize("cause", [EngineFull("busy", 3.2)])
def test_what_is_told_survives_the_way_between_processes(cause):
    import pickle

    assert pickle.loads(pickle.dumps(cause)).retry_after == 3.2
