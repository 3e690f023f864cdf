"""Training through Ray Train: one worker, two workers, a worker that dies, and a finished run asked for again."""

import dataclasses
import math
import os
import socket
import subprocess
import sys

import pytest
import torch
from mlflow import MlflowClient

from components.data import Dataset
from components.errors import InputError, TrainingError
from components.families import FAMILIES
from components.optimizers import OptimizerConfig
from components.order import global_batch
from infra import ray_train, tracking
from infra.config import ClusterConfig, TrackingConfig
from tests.infra.ray_train.jobs import make_job, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train")


def run(job, storage, num_workers=1):
    dataset = {"name": "d", "digest": "d", "source": "d"}
    tracked = tracking.open_run(TrackingConfig(), storage, job.name, job.hash, {}, dataset)
    logger = tracking.RunLogger(tracked)
    return ray_train.train(job, ClusterConfig(num_workers=num_workers), storage, logger), tracked


@pytest.fixture(scope="module")
def undisturbed(ray_session, images, tmp_path_factory):
    """One worker, no fault: the storage it used, its final state and its tracked run."""
    storage = tmp_path_factory.mktemp("undisturbed")
    return storage, *run(make_job(images), storage)


def logged_steps(tracked) -> list[int]:
    return [metric.step for metric in MlflowClient(tracked.uri).get_metric_history(tracked.run_id, "autoencode/loss")]


def test_training_moves_the_weights_and_reports_every_step_once(undisturbed, images):
    storage, state, tracked = undisturbed
    assert state.step == 6
    assert [row["step"] for row in state.history] == [2, 3, 4, 6]
    assert logged_steps(tracked) == [2, 3, 4, 6]
    initial = make_job(images).build().nets["autoencoder"].state_dict()
    assert any(not torch.equal(initial[key], value) for key, value in state.nets["autoencoder"].items())
    client = MlflowClient(tracked.uri)
    assert [file.path for file in client.list_artifacts(tracked.run_id, "previews")] == [
        "previews/0000003.png",
        "previews/0000006.png",
    ]
    assert client.get_run(tracked.run_id).data.metrics["system/memory_gib"] > 0.1

    again, _ = run(make_job(images), storage)  # finished already: the same result, no second training
    assert all(torch.equal(again.nets["autoencoder"][key], value) for key, value in state.nets["autoencoder"].items())


def test_two_workers_train_on_the_same_global_batches(undisturbed, images, tmp_path):
    _, alone, _ = undisturbed
    together, tracked = run(make_job(images), tmp_path, num_workers=2)
    # both looks were taken, by tasks beside the workers
    assert len(MlflowClient(tracked.uri).list_artifacts(tracked.run_id, "previews")) == 2
    # the loss sees every row's draw; weights themselves may part, since Adam divides rounding by rounding
    for row, other in zip(alone.history, together.history, strict=True):
        assert all(math.isclose(row[key], other[key], rel_tol=1e-3, abs_tol=1e-3) for key in row), (row, other)


def test_a_second_derivative_passes_through_data_parallelism(ray_session, images, tmp_path):
    state, _ = run(make_job(images, "wgan_gp"), tmp_path, num_workers=2)
    assert state.step == 6
    assert all(0 < row["discriminate/gradient_penalty"] < 2 for row in state.history)


class DiesOnce(FAMILIES["vae"]):
    """Ends its process at its fifth loss, if the marker file is not there yet."""

    marker = ""
    count = 0

    def loss(self, net, batch):
        self.count += 1
        if self.count == 5 and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os._exit(1)
        return super().loss(net, batch)


class FragileJob(ray_train.Job):
    def build(self):
        torch.manual_seed(self.seed)
        family = DiesOnce(self.config, self.info)
        family.marker = self.data + ".died"
        return family


def test_a_worker_that_dies_loses_nothing(undisturbed, images, tmp_path):
    _, whole, _ = undisturbed
    job = make_job(images)
    fragile = FragileJob(**{name: getattr(job, name) for name in job.__dataclass_fields__})
    state, tracked = run(fragile, tmp_path)
    assert os.path.exists(str(images) + ".died")
    for key, value in whole.nets["autoencoder"].items():
        assert torch.equal(state.nets["autoencoder"][key], value), key
    for key, value in whole.average["autoencoder"].items():
        assert torch.equal(state.average["autoencoder"][key], value), key
    assert state.history == whole.history
    assert logged_steps(tracked) == [2, 3, 4, 6]


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


def test_a_loss_that_is_not_finite_ends_the_run_at_once(ray_session, images, tmp_path):
    job = make_job(images)
    diverging = dataclasses.replace(
        job, config=job.config.model_copy(update={"optimizer": OptimizerConfig(learning_rate=1e30)})
    )
    with pytest.raises(TrainingError, match=r"vae: autoencode/\w+ became (nan|inf) at step (\d)") as caught:
        run(diverging, tmp_path)
    step = int(caught.value.args[0].partition("at step ")[2][0])
    rows = ", ".join(map(str, global_batch(step, 10, 64, 0).tolist()))
    assert str(caught.value).endswith(f"its rows in {images}: {rows}")
