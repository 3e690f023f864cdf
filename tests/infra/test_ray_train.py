"""Training through Ray Train: one worker, two workers, a worker that dies, and a finished run asked for again."""

import dataclasses
import math
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from components.data import Dataset, read_manifest, write_manifest, write_shards
from components.errors import DataError, InputError, TrainingError
from components.families import FAMILIES
from components.families.base import data_info
from components.files import whole_folder
from components.optimizers import OptimizerConfig
from components.training import TrainingConfig
from infra import ray_train, tracking
from infra.config import ClusterConfig, TrackingConfig


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """64 images of two classes, bright left or bright right."""
    folder = tmp_path_factory.mktemp("data") / "train"
    pixels = np.random.default_rng(0).integers(0, 80, (64, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(64) % 2
    for image, label in zip(pixels, labels, strict=True):
        image[0, :, :4] += np.uint8(150 * label)
        image[0, :, 4:] += np.uint8(150 * (1 - label))
    rows = ({"image": image, "label": np.asarray(label)} for image, label in zip(pixels, labels, strict=True))
    with whole_folder(folder) as working:
        write_manifest(working, write_shards(working, rows, 40), value_range=(0, 255), classes=("left", "right"))
    return folder


def make_job(images, family="vae", **training) -> ray_train.Job:
    kind = FAMILIES[family]
    model = {
        "vae": {"widths": [8], "latent_channels": 2},
        "judge": {"width": 8},
        "wgan_gp": {"width": 4, "latent_dim": 4, "num_critic_steps": 2},
    }[family]
    facts = {"steps": 6, "batch_size": 10, "report_every": 2, "save_every": 3} | training
    return ray_train.Job(
        name=family,
        family=family,
        config=kind.Config(**model),
        info=data_info(read_manifest(images)),
        training=TrainingConfig(**facts),
        seed=0,
        data=str(images),
        data_hash="data",
        code_hash="code",
    )


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
    from mlflow import MlflowClient

    return [metric.step for metric in MlflowClient(tracked.uri).get_metric_history(tracked.run_id, "autoencode/loss")]


def test_training_moves_the_weights_and_reports_every_step_once(undisturbed, images):
    from mlflow import MlflowClient

    storage, state, tracked = undisturbed
    assert state.step == 6
    assert [row["step"] for row in state.history] == [2, 3, 4, 6]
    assert logged_steps(tracked) == [2, 3, 4, 6]
    initial = make_job(images).build().nets["autoencoder"].state_dict()
    assert any(not torch.equal(initial[key], value) for key, value in state.nets["autoencoder"].items())
    assert MlflowClient(tracked.uri).list_artifacts(tracked.run_id, "previews")

    again, _ = run(make_job(images), storage)  # finished already: the same result, no second training
    assert all(torch.equal(again.nets["autoencoder"][key], value) for key, value in state.nets["autoencoder"].items())


def test_two_workers_train_on_the_same_global_batches(undisturbed, images, tmp_path):
    _, alone, _ = undisturbed
    together, _ = run(make_job(images), tmp_path, num_workers=2)
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


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    ray_train.write_state(tmp_path, ray_train.State(3, {}, {}, {}))
    assert ray_train.read_state(tmp_path, torch.device("cpu")).step == 3
    path = tmp_path / ray_train.STATE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"state\.pt: checkpoint is missing, truncated or altered"):
        ray_train.read_state(tmp_path, torch.device("cpu"))


def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, monkeypatch, caplog):
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint_2026-01-01_00-00-0{step}"
        folder.mkdir()
        ray_train.write_state(folder, ray_train.State(step, {}, {}, {}))
    (folder / ray_train.STATE_FILE).write_bytes(b"")
    newest = ray_train.ray.train.Checkpoint.from_directory(folder)
    monkeypatch.setattr(ray_train.ray.train, "get_checkpoint", lambda: newest)
    assert ray_train._restore(torch.device("cpu")).step == 2
    assert "going back to the checkpoint before" in caplog.text


def test_a_loss_that_is_not_finite_ends_the_run_at_once(ray_session, images, tmp_path):
    job = make_job(images)
    diverging = dataclasses.replace(
        job, config=job.config.model_copy(update={"optimizer": OptimizerConfig(learning_rate=1e30)})
    )
    with pytest.raises(TrainingError, match=r"vae: autoencode/\w+ became (nan|inf) at step \d"):
        run(diverging, tmp_path)
