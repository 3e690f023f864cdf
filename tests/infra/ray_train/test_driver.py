"""Training through Ray Train: two workers, a finished run asked for again, and what ends a run in one line."""

import dataclasses
import math
import re
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
import ray.train
from mlflow import MlflowClient
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from components.artifacts import run_folder
from components.data.dataset import Dataset
from components.data.permutation import global_batch
from components.errors import ConfigError, DataError, InputError, StorageError, TrainingError
from components.training.loop import State
from components.training.metric_averages import NonFiniteError
from infra import ray_train
from infra.config import ClusterConfig, TrackingConfig
from infra.ray_train import driver, failures, worker
from infra.storage.store import Store
from infra.tracking import runs
from tests.components.helpers import assert_same, one_exact_thread
from tests.infra.ray_train.jobs import FailingJob, make_job, write_images
from tests.pipelines.in_process import fitted


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train")


def run(job, storage, num_workers=1, sharding="none"):
    data = runs.TrainingData("d", "d", 1, {"image": ("uint8", (1,))})
    tracked = runs.open_run(TrackingConfig(), storage, runs.Described(job.name, job.hash), data)
    cluster = ClusterConfig(num_workers=num_workers, threads_per_worker=1, sharding=sharding)
    return ray_train.train(job, cluster, storage, runs.RunLogger(tracked)), tracked


def in_process(job) -> State:
    """The same training by the loop alone."""
    with one_exact_thread():
        return fitted(job)[1]


def test_two_workers_train_on_the_same_global_batches(ray_session, images, tmp_path, monkeypatch):
    """With penalties, whose second derivative passes through data parallelism; no net looks across rows. Workers and
    drivers that die: tests/test_chaos.py."""
    job = make_job(images, "r3gan")
    together, tracked = run(job, tmp_path, num_workers=2)
    # the loss sees every row's draw; weights themselves may part, since Adam divides rounding by rounding
    for row, other in zip(in_process(job).history, together.history, strict=True):
        assert row.keys() == other.keys()
        assert all(math.isclose(row[key], other[key], rel_tol=1e-3, abs_tol=1e-3) for key in row), (row, other)

    client = MlflowClient(tracked.uri)
    (loss, *_) = (name for name in client.get_run(tracked.run_id).data.metrics if name.endswith("/loss"))
    steps = [metric.step for metric in client.get_metric_history(tracked.run_id, loss)]
    assert steps == [row["step"] for row in together.history] == [2, 3, 4, 6]
    # both checkpoints were validated, by tasks beside the workers
    pictures = ["previews/0000003.png", "previews/0000006.png"]
    assert [file.path for file in client.list_artifacts(tracked.run_id, "previews")] == pictures
    assert client.get_run(tracked.run_id).data.metrics["system/memory_gib"] > 0.1

    # the copies that went into storage are gone
    assert not list(Path(tempfile.gettempdir()).glob(f"{job.name}-*"))

    # finished already: the same result at once, without workers
    monkeypatch.setattr(driver, "LocalTrainer", None)
    again, _ = run(job, tmp_path, num_workers=2)
    assert_same(again.nets, together.nets)


@pytest.mark.slow
def test_weights_spread_over_two_workers_end_whole_in_the_run_folder(ray_session, images, tmp_path):
    """The same run, by FSDP2 over gloo: components alone is tests/components/training/test_sharding.py."""
    job = make_job(images)
    spread, _ = run(job, tmp_path, num_workers=2, sharding="fsdp2")
    for row, other in zip(in_process(job).history, spread.history, strict=True):
        assert all(math.isclose(row[key], other[key], rel_tol=1e-3, abs_tol=1e-3) for key in row), (row, other)
    provenance = run_folder.Provenance(data="d", code="c", job=job.hash, seed=0, step=spread.step)
    run_folder.write(tmp_path / "vae", job.family, job.build(), spread, provenance)
    loaded = run_folder.load(tmp_path / "vae").family.nets["autoencoder"].state_dict()
    assert_same(loaded, spread.average["autoencoder"])


def test_a_jobs_hash_knows_its_data_and_settings(images):
    job = make_job(images)
    assert job.hash == make_job(images).hash
    assert job.hash != make_job(images, steps=7).hash
    other = ray_train.Job(**{**{n: getattr(job, n) for n in job.__dataclass_fields__}, "data_hash": "other"})
    assert job.hash != other.hash


def test_the_data_set_is_not_touched(images):
    assert len(Dataset(images)) == 64


def test_a_second_driver_is_told_who_trains(tmp_path):
    script = f"""
import sys, time
from pathlib import Path
from infra.ray_train import run_lock
with run_lock(Path({str(tmp_path)!r}), "vae-1"):
    print("locked", flush=True)
    time.sleep(60)
"""
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "locked\n"
        with (
            pytest.raises(InputError, match=rf"process {first.pid} on {socket.gethostname()} trains this run already"),
            ray_train.run_lock(tmp_path, "vae-1"),
        ):
            pass
    finally:
        first.kill()
        first.wait()
    with ray_train.run_lock(tmp_path, "vae-1"):  # a killed driver leaves no lock behind
        pass


def test_a_loss_that_is_not_finite_is_told_with_the_rows_that_caused_it(images, monkeypatch):
    """Every worker returns what went wrong, so that Ray does not try again what would fail again."""
    job = make_job(images)
    error = NonFiniteError("autoencode/loss", math.nan, 4)

    class Broken(worker.Worker):
        def __init__(self, job):
            self.job, self.family = job, job.build()

        def train(self) -> None:
            raise error

    monkeypatch.setattr(worker, "Worker", Broken)
    told = worker.work({"job": job})
    rows = ", ".join(map(str, global_batch(4, 10, 64, 0).tolist()))
    assert told == f"{error}; its rows in {images}: {rows}"
    assert told.startswith("autoencode/loss became nan at step 4")


def test_what_workers_return_ends_the_run_in_one_line(ray_session, images, tmp_path, monkeypatch):
    class Ended:
        def __init__(self, *settings, **more):
            pass

        def fit(self):
            return types.SimpleNamespace(return_value="autoencode/loss became nan")

    monkeypatch.setattr(driver, "LocalTrainer", Ended)
    with pytest.raises(TrainingError, match="^vae: autoencode/loss became nan$"):
        run(make_job(images), tmp_path)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (OSError("cannot reach the bucket\nthe rest"), r"run: cannot reach the bucket; .* the same command goes on"),
        (DataError("x.npy: shard is truncated"), r"^x\.npy: shard is truncated$"),
    ],
)
def test_what_a_user_can_mend_is_told_in_one_line(tmp_path, failure, told):
    run = Store.open(tmp_path / "run")
    wrapped = UserExceptionWithTraceback(failure, "Traceback of a worker")
    for error in (ray.train.ControllerError(failure), ray.train.WorkerGroupError("of 2", {1: wrapped})):
        found = failures.mendable(error, run)
        assert isinstance(found, InputError) and "\n" not in str(found)
        assert re.search(told, str(found))


def test_what_would_fail_again_is_not_tried_again(ray_session, tmp_path):
    images = write_images(tmp_path / "images")
    job = make_job(images)
    job = FailingJob(**{one.name: getattr(job, one.name) for one in dataclasses.fields(job)})
    with pytest.raises(ConfigError, match=r"^model\.widths: expected another$"):
        run(job, tmp_path)
    assert Path(f"{images}.tries").read_text() == "x"


@pytest.mark.parametrize(
    ("causes", "comes_again"),
    [
        ([DataError("x.npy: shard is truncated")], True),
        ([RuntimeError("connection reset by peer"), ConfigError("inputs: expected a judge")], True),
        ([StorageError("s3://bucket: cannot be reached")], False),
        ([OSError("disk is full")], False),
        ([KeyError("x")], False),
    ],
)
def test_failures_are_tried_again_unless_they_would_come_again(tmp_path, causes, comes_again):
    wrapped = {rank: UserExceptionWithTraceback(cause, "Traceback") for rank, cause in enumerate(causes)}
    error = ray.train.WorkerGroupError("of some", wrapped)
    policy = failures.FailurePolicy(ray.train.FailureConfig(max_failures=3))
    assert policy.make_decision(error) is (FailureDecision.RAISE if comes_again else FailureDecision.RETRY)
    if comes_again:
        assert failures.mendable(error, Store.open(tmp_path)) is causes[-1]


def test_rays_controller_needs_no_torch_for_the_policy():
    policy = ray.cloudpickle.dumps(failures.FailurePolicy(ray.train.FailureConfig(max_failures=1)))
    code = f"import pickle, sys; pickle.loads({policy!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_nobody_can_mend_keeps_its_traceback(tmp_path):
    error = ray.train.WorkerGroupError("of 2", {0: UserExceptionWithTraceback(KeyError("x"), "Traceback of a worker")})
    assert failures.mendable(error, Store.open(tmp_path)) is error
