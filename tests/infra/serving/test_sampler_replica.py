import asyncio
import threading
import time

import pytest
from ray.exceptions import RayTaskError

from components.artifacts import run_folder
from components.errors import SamplerError
from components.sampling.engine import DeadlineExceeded, EngineFull, EngineStopped
from infra.config import ServeConfig
from infra.serving import ray_serve
from infra.serving.api_error import ApiError
from infra.serving.autoscaling import LOAD, replicas_for_load
from infra.serving.backend import Refused
from infra.serving.orders import SampleRequest
from infra.serving.sampler_replica import SamplerReplica
from tests.infra.local import served_model

CONFIG = ServeConfig(slots=16, queue=16, threads=1)
SETTINGS = {"num_inference_steps": 3}


@pytest.fixture
def model(folder):
    return served_model(folder)


def test_a_stuck_engine_fails_the_health_check_and_tells_who_waits(model):
    replica = SamplerReplica(model, CONFIG.model_copy(update={"stuck_after": 0.3}))
    entered, release = threading.Event(), threading.Event()

    def stuck(**inputs):
        entered.set()
        release.wait(60)
        raise RuntimeError("released")

    replica.check_health()
    replica.engine.nets = {"denoiser": stuck}
    orders = [SampleRequest(model=model.key, seed=seed, label=0, settings=SETTINGS, group="group") for seed in (1, 2)]
    future, waiting = map(replica._submit, orders)
    assert entered.wait(60)
    time.sleep(0.4)
    with pytest.raises(RuntimeError, match="no sign of life"):
        replica.check_health()
    for lost in (future, waiting):
        with pytest.raises(EngineStopped):
            lost.result(0)
    release.set()  # too late: Serve is told the same until it has replaced the replica
    replica.engine.stop(timeout=60)
    with pytest.raises(RuntimeError, match="no sign of life"):
        replica.check_health()
    with pytest.raises(EngineStopped):
        replica._submit(orders[0])


def test_no_thread_computes_beside_the_engines(model, monkeypatch):
    """Each that ever did would keep a team of OpenMP threads, which slows the engine's down."""
    loaded_by = []

    def load(*args):
        loaded_by.append(threading.current_thread())
        return read(*args)

    read = run_folder.load
    monkeypatch.setattr(run_folder, "load", load)
    SamplerReplica(model, CONFIG).engine.stop(timeout=60)
    (thread,) = loaded_by
    assert thread is not threading.current_thread() and not thread.is_alive()


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (EngineFull("7 rows"), 429, "queue_full"),
        (DeadlineExceeded("the deadline passed"), 504, "deadline_exceeded"),
        (EngineStopped("stopped"), 503, "unavailable"),
        (ValueError("secret"), 500, None),
    ],
)
def test_what_a_client_may_know(raised, status, code):
    error = ray_serve.api_error_of(RayTaskError("generate", "traceback", raised))
    assert (error.status, error.body["error"]["code"]) == (status, code)
    assert "secret" not in str(error) and "traceback" not in str(error)
    assert (error.retry_after is not None) == (status in (429, 503))


@pytest.mark.parametrize("cause", [EngineFull("busy", 3.0, 2.0), DeadlineExceeded("late"), SamplerError("size: no")])
def test_what_a_request_does_not_get_is_answered_and_not_raised(model, monkeypatch, cause):
    """Serve logs what is raised with its traceback, which under overload costs the engine time."""

    def refuse(orders):
        raise cause

    async def streamed():
        return [item async for item in replica.stream([order])]

    replica, order = SamplerReplica(model, CONFIG), SampleRequest(model=model.key, seed=1, group="g", settings=SETTINGS)
    monkeypatch.setattr(replica.admission, "refuse_unfinishable", refuse)
    assert asyncio.run(replica.generate([order])) == Refused(cause)
    assert asyncio.run(streamed()) == [Refused(cause)]
    with pytest.raises(ApiError) as told:
        ray_serve.unless_refused(Refused(cause))
    assert told.value.status == ray_serve.api_error_of(RayTaskError("generate", "traceback", cause)).status
    replica.engine.stop(timeout=60)


class Context:
    """What Serve tells an autoscaling policy."""

    def __init__(self, *loads):
        self.aggregated_metrics, self.target_num_replicas = {LOAD: dict(enumerate(loads))} if loads else {}, 2


@pytest.mark.parametrize(
    ("loads", "replicas"), [((), 2), ((0.0, 0.0), 1), ((0.5,), 1), ((0.6,), 2), ((2.0,), 4), ((1.0, 0.9, 0.2), 5)]
)
def test_replicas_follow_the_engines_load(loads, replicas):
    assert replicas_for_load(Context(*loads)) == (replicas, {})


def test_the_load_counts_rows_that_advance_and_that_wait(model):
    replica = SamplerReplica(model, CONFIG)
    assert replica.record_autoscaling_stats() == {LOAD: 0}
    entered, release = threading.Event(), threading.Event()

    def slow(**inputs):
        entered.set()
        release.wait(60)
        raise RuntimeError("released")

    replica.engine.nets = {"denoiser": slow}
    for seed in range(24):
        replica._submit(SampleRequest(model=model.key, seed=seed, label=0, settings=SETTINGS, group=str(seed)))
    assert entered.wait(60)
    assert 24 / 16 <= replica.record_autoscaling_stats()[LOAD] <= 2 * 24 / 16  # guided images have two rows
    replica.engine.give_up()
    release.set()


def test_a_refusal_goes_for_as_large_requests_for_a_moment(model):
    """Each is told to come after the one before, and no engine is asked."""
    backend = ray_serve.Samplers(60, remembered=30)

    def order(steps):
        return [SampleRequest(model="m", seed=1, settings={"num_inference_steps": steps}, group="g")]

    cause = EngineFull("busy", 3.0, 2.0)
    with pytest.raises(ApiError), backend._remembering(order(10)):
        ray_serve.unless_refused(Refused(cause))
    told = []
    for _ in range(2):
        with pytest.raises(ApiError) as refused:
            backend._refuse_remembered(order(10))
        told.append(refused.value.retry_after)
    assert told == [5, 7]
    backend._refuse_remembered(order(9))  # a smaller one is asked about
