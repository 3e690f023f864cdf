"""Experiment tracking: with infra/tracking/registry.py the only module that knows MLflow.

Only the driver tracks: workers send it their reports, so none of them imports MLflow or waits for a server. The same
job continues the same run, so an interrupted training leaves one run with every step once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from components.errors import InputError
from components.metrics.figures import VALIDATION
from infra.config import TrackingConfig

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # of 7: a wrong address should not take minutes to say so
}
# every session opens the file anew: a pool's connections would go on with one that a restored backup has replaced
FILE_STORE = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
JOB_TAG = "job"
_VALIDATED = re.compile(f"{VALIDATION}/")  # figures of checkpoints, which come apart from those of steps


def connect(uri: str):
    """A client of the tracking store and the registry at `uri`."""
    # imported on demand: MLflow takes seconds, and most processes that import this module never track
    for name, value in (ENVIRONMENT | (FILE_STORE if uri.startswith("sqlite:") else {})).items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it creates
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Tells in one line, as InputError, of a store that cannot be used."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(f"tracking.uri {uri!r}: {str(error).splitlines()[0]}") from None


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """No other process makes the tables of the same new SQLite file for the time of the block; a server needs no such
    care."""
    prefix = "sqlite:///"
    with FileLock(f"{uri.removeprefix(prefix)}.lock") if uri.startswith(prefix) else contextlib.nullcontext():
        yield


@dataclass(frozen=True)
class TrackedRun:
    """A run: where it is kept, and which it is."""

    uri: str
    run_id: str


def open_run(
    config: TrackingConfig,
    root: Path,
    name: str,
    job: str,
    params: Mapping[str, object],
    dataset: Mapping[str, str],
) -> TrackedRun:
    """The run of a job, begun or continued. `dataset` names the input: name, digest, source."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    uri = config.absolute_uri(root)
    with reachable(uri):
        with _alone(uri):  # a client makes the tables
            client = connect(uri)
            experiment = experiment_id(client, config, root)
        run_id = _run_id_of(client, experiment, job)
        if run_id:
            client.update_run(run_id, status="RUNNING")
            return TrackedRun(uri, run_id)
        run_id = client.create_run(experiment, run_name=name, tags={JOB_TAG: job}).info.run_id
        client.log_batch(run_id, params=[Param(key, str(value)[:6000]) for key, value in params.items()])
        data = Dataset(name=dataset["name"], digest=dataset["digest"][:36], source_type="dvc", source=dataset["source"])
        client.log_inputs(run_id, datasets=[DatasetInput(data, tags=[InputTag("mlflow.data.context", "training")])])
        client.log_batch(run_id, tags=[RunTag("data", dataset["digest"])])
        return TrackedRun(uri, run_id)


def _run_id_of(client, experiment: str, job: str) -> str | None:
    found = client.search_runs([experiment], f"tags.{JOB_TAG} = '{job}'", max_results=1)
    return found[0].info.run_id if found else None


def experiment_id(client, config: TrackingConfig, root: Path) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(config.experiment)
    if found is None:
        location = None if config.uri.startswith("http") else (root / config.artifacts).as_uri()
        try:
            return client.create_experiment(config.experiment, artifact_location=location)
        except MlflowException:  # another stage, running beside this one, was first
            found = client.get_experiment_by_name(config.experiment)
    return found.experiment_id


def close_run(run: TrackedRun, succeeded: bool) -> None:
    connect(run.uri).set_terminated(run.run_id, "FINISHED" if succeeded else "FAILED")


class RunLogger:
    """Writes figures and pictures of one run, each step once, even when training repeats steps after a restart."""

    def __init__(self, run: TrackedRun):
        self._client = connect(run.uri)
        self._run_id = run.run_id
        # every report of a kind has every figure of it, so the steps of any one tell which reports are on record
        names = self._client.get_run(run.run_id).data.metrics
        self._written = set()
        for kind, is_one in (("figures", lambda name: name.endswith("/loss")), ("validated", _VALIDATED.match)):
            found = [name for name in names if is_one(name)]
            history = self._client.get_metric_history(run.run_id, found[0]) if found else []
            self._written |= {(kind, metric.step) for metric in history}

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs one report: of a step's losses, or of its checkpoint's validation."""
        from mlflow.entities import Metric

        kind = "validated" if all(map(_VALIDATED.match, figures)) else "figures"
        if not figures or (kind, step) in self._written:
            return
        self._written.add((kind, step))
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def picture(self, name: str, png: bytes) -> None:
        _log_file(self._client, self._run_id, name, png)


def run_of_job(config: TrackingConfig, root: Path, job: str) -> TrackedRun | None:
    """The run that trained a job, if this tracking store has it."""
    uri = config.absolute_uri(root)
    with reachable(uri):
        client = connect(uri)
        experiment = experiment_id(client, config, root)
        run_id = _run_id_of(client, experiment, job)
        return TrackedRun(uri, run_id) if run_id else None


def log_evaluation(run: TrackedRun, figures: Mapping[str, float | None], files: Mapping[str, bytes]) -> None:
    """Adds figures, by name, and files, by path, to a run that has ended; figures that are None are left out."""
    from mlflow.entities import Metric

    client, now = connect(run.uri), int(time.time() * 1000)
    metrics = [Metric(name, float(value), now, 0) for name, value in figures.items() if value is not None]
    client.log_batch(run.run_id, metrics=metrics)
    for name, content in files.items():
        _log_file(client, run.run_id, name, content)


def _log_file(client, run_id: str, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(content)
        client.log_artifact(run_id, str(path), str(Path(name).parent))
