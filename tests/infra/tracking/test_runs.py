"""Tracking against a real SQLite store: one run for one job, every step once."""

import pytest
from mlflow import MlflowClient

from components.errors import InputError
from infra.config import TrackingConfig
from infra.tracking import runs

DATASET = {"name": "data/images/train", "digest": "abc" * 20, "source": "data/images/train"}


def open_run(root, job="job-1", uri="sqlite:///mlflow.db"):
    return runs.open_run(TrackingConfig(uri=uri), root, "vae", job, {"steps": 3}, DATASET)


def steps_of(run: runs.TrackedRun, key: str) -> list[int]:
    return [metric.step for metric in MlflowClient(run.uri).get_metric_history(run.run_id, key)]


def test_the_same_job_continues_its_run_and_another_begins_one(tmp_path):
    first = open_run(tmp_path)
    runs.close_run(first, succeeded=False)
    assert open_run(tmp_path) == first
    assert open_run(tmp_path, "job-2").run_id != first.run_id


def test_a_run_carries_params_and_its_data(tmp_path):
    run = open_run(tmp_path)
    found = MlflowClient(run.uri).get_run(run.run_id)
    assert found.data.params == {"steps": "3"}
    assert found.data.tags["data"] == DATASET["digest"]
    (data,) = found.inputs.dataset_inputs
    assert data.dataset.digest == DATASET["digest"][:36]


def test_repeated_steps_are_written_once(tmp_path):
    run = open_run(tmp_path)
    first = runs.RunLogger(run)
    first.figures(10, {"a/loss": 1.0})
    first.figures(20, {"a/loss": 0.5})
    first.figures(20, {"a/loss": 0.5})
    resumed = runs.RunLogger(run)
    for step in (10, 20, 30):
        resumed.figures(step, {"a/loss": 0.1})
    assert steps_of(run, "a/loss") == [10, 20, 30]


def test_validation_is_tracked_beside_the_losses_of_its_step(tmp_path):
    run = open_run(tmp_path)
    first = runs.RunLogger(run)
    first.figures(10, {"a/loss": 1.0})
    first.figures(10, {"validation/classes_hit": 3.0})
    first.figures(20, {})  # most families have nothing to tell
    resumed = runs.RunLogger(run)
    resumed.figures(10, {"validation/classes_hit": 3.0})
    resumed.figures(20, {"validation/classes_hit": 4.0})
    assert steps_of(run, "a/loss") == [10]
    assert steps_of(run, "validation/classes_hit") == [10, 20]


def test_pictures_become_artifacts(tmp_path):
    run = open_run(tmp_path)
    runs.RunLogger(run).picture("previews/0000010.png", b"png")
    assert [file.path for file in MlflowClient(run.uri).list_artifacts(run.run_id, "previews")] == [
        "previews/0000010.png"
    ]
    assert (tmp_path / "mlartifacts").is_dir()


def test_a_store_that_cannot_be_opened_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"tracking\.uri") as caught:
        open_run(tmp_path, uri="sqlite:////dev/null/mlflow.db")
    assert "\n" not in str(caught.value)


def test_a_relative_database_lies_at_the_root(tmp_path):
    assert TrackingConfig().absolute_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert TrackingConfig(uri="http://host:5000").absolute_uri(tmp_path) == "http://host:5000"
