"""Tracking against a real SQLite store: one run for one job, every step once."""

import json
import sqlite3

import mlflow.data
import pytest
from mlflow import MlflowClient
from mlflow.data.schema import TensorDatasetSchema

from components.errors import InputError
from infra.config import TrackingConfig
from infra.tracking import runs
from infra.tracking.registry import Registry

DATA = runs.TrainingData("data/images/train", "abc" * 20, 40, {"image": ("uint8", (1, 8, 8)), "label": ("int64", ())})


def open_run(root, job="job-1", uri="sqlite:///mlflow.db"):
    told = runs.Described(f"vae-{job}", job, "python -m pipelines.train vae", "c" * 40, "a vae", {"steps": 3})
    return runs.open_run(TrackingConfig(uri=uri), root, told, DATA)


def steps_of(run: runs.TrackedRun, key: str) -> list[int]:
    return [metric.step for metric in MlflowClient(run.uri).get_metric_history(run.run_id, key)]


def test_the_same_job_continues_its_run_and_another_begins_one(tmp_path):
    first = open_run(tmp_path)
    runs.close_run(first, "FAILED", {})
    assert open_run(tmp_path) == first
    assert open_run(tmp_path, "job-2").run_id != first.run_id


def test_a_run_carries_what_mlflow_shows_of_one(tmp_path):
    run = open_run(tmp_path)
    client = MlflowClient(run.uri)
    found = client.get_run(run.run_id)
    assert found.data.params == {"steps": "3"}
    assert found.info.run_name == "vae-job-1" and found.info.user_id == runs.user()
    tags = {"data": DATA.digest, "mlflow.source.name": "python -m pipelines.train vae", "mlflow.note.content": "a vae"}
    assert found.data.tags.items() >= (tags | {"mlflow.source.git.commit": "c" * 40}).items()
    (given,) = found.inputs.dataset_inputs
    assert given.dataset.digest == DATA.digest[:36]
    assert mlflow.data.get_source(given).to_dict() == {"uri": "data/images/train"}
    assert "(-1, 1, 8, 8)" in str(TensorDatasetSchema.from_dict(json.loads(given.dataset.schema)))
    kind = client.get_experiment(found.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"


def test_an_interrupted_run_is_killed_and_files_stay_with_it(tmp_path):
    run = open_run(tmp_path)
    runs.close_run(run, "KILLED", {"run/history.csv": b"step"})
    client = MlflowClient(run.uri)
    assert client.get_run(run.run_id).info.status == "KILLED"
    assert [file.path for file in client.list_artifacts(run.run_id, "run")] == ["run/history.csv"]


def test_figures_that_a_run_has_are_not_written_again(tmp_path):
    run = open_run(tmp_path)
    for value in (1.0, 1.0, 2.0):
        runs.log_evaluation(run, {"kid": value, "unknown": None}, {})
    history = MlflowClient(run.uri).get_metric_history(run.run_id, "kid")
    assert [metric.value for metric in history] == [1.0, 2.0]


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


def test_a_store_that_a_crash_left_half_made_is_one_clear_line(tmp_path):
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE metrics (key TEXT, step INTEGER)")
    database.close()
    with pytest.raises(
        InputError, match="mlflow.db: a store that a crash left half made, .* put back a copy"
    ) as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_no_store_to_ask_and_becomes_one(tmp_path):
    (tmp_path / "mlflow.db").touch()
    registry = Registry(TrackingConfig(), tmp_path, "model")
    assert not registry.is_there()
    with pytest.raises(InputError, match="there is no store in .*mlflow.db, so no registry here"):
        registry.expect()
    assert open_run(tmp_path).run_id and registry.is_there()


def test_a_relative_database_lies_at_the_root(tmp_path):
    assert TrackingConfig().absolute_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert TrackingConfig(uri="http://host:5000").absolute_uri(tmp_path) == "http://host:5000"
