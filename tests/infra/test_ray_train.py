"""Training through Ray Train: one worker, two workers, a worker that dies, and a finished run asked for again."""

import math
import os

import numpy as np
import pytest
import torch

from components.data import Dataset, read_manifest, write_manifest, write_shards
from components.families import FAMILIES
from components.families.base import data_info
from components.files import whole_folder
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
    assert all(0 < row["criticise/gradient_penalty"] < 2 for row in state.history)


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
