"""Experiment tracking: with infra/tracking/registry.py the only module that knows MLflow.

Only the driver tracks: workers send it their reports, so none of them imports MLflow or waits for a server. The same
job continues the same run, so an interrupted training leaves one run with every step once.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock

from components.errors import InputError
from components.imports import uncollected
from components.metrics.figures import VALIDATION
from infra.config import TrackingConfig, home
from infra.tracking import relocation

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # of 7: a wrong address should not take minutes to say so
}
# every session opens the file anew: a pool's connections would go on with one that a restored backup has replaced
FILE_STORE = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
JOB_TAG = "job"
_CLASSIC = {"mlflow.experimentKind": "custom_model_development"}  # MLflow 3.17: runs and their metrics, not agents
_VALIDATED = re.compile(f"{VALIDATION}/")  # figures of checkpoints, which come apart from those of steps


def open_store(config: TrackingConfig, root: Path):
    """A client of the store that `config` names, made where there is none, and its locations repaired where the project
    was moved."""
    uri, database = config.absolute_uri(root), config.database(root)
    if database is None:
        return connect(uri)
    with FileLock(f"{database}.lock"):  # a client makes the tables
        if database.is_relative_to(home(root)):  # else several projects may share it
            relocation.repair(database, config.artifact_folder(root))
        with _half_made(database):
            return connect(uri)


@contextlib.contextmanager
def _half_made(database: Path) -> Iterator[None]:
    """Tells of a SQLite store whose tables are not those that MLflow goes on from."""
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except OperationalError as error:
        if not any(told in str(error) for told in ("duplicate column", "already exists", "no such")):
            raise
        raise InputError(
            f"tracking.uri: {database}: a store that a crash left half made, or of another version of MLflow "
            f"({one_line(error)}); expected a whole one: put back a copy, or move it away and a new one is made"
        ) from None


def connect(uri: str):
    """A client of the tracking store and the registry at `uri`."""
    # imported on demand: MLflow takes seconds, and most processes that import this module never track
    for name, value in (ENVIRONMENT | (FILE_STORE if uri.startswith("sqlite:") else {})).items():
        os.environ.setdefault(name, value)
    with uncollected():
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
        raise InputError(f"tracking.uri {uri!r}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())


@dataclass(frozen=True)
class TrackedRun:
    """A run: where it is kept, and which it is."""

    uri: str
    run_id: str


@dataclass(frozen=True)
class Described:
    """What a run tells of its job: `name` to tell it from others, `job` the hash that it is found again by, `source`
    the command, `commit` of git, empty without one, a sentence, and all that was configured."""

    name: str
    job: str
    source: str = ""
    commit: str = ""
    description: str = ""
    params: Mapping[str, object] = field(default_factory=dict)

    @property
    def tags(self) -> dict[str, str]:
        from mlflow.utils import mlflow_tags

        tags = {
            JOB_TAG: self.job,
            mlflow_tags.MLFLOW_USER: user(),
            mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL",
            mlflow_tags.MLFLOW_SOURCE_NAME: self.source,
            mlflow_tags.MLFLOW_GIT_COMMIT: self.commit,
            mlflow_tags.MLFLOW_RUN_NOTE: self.description,
        }
        return {name: value for name, value in tags.items() if value}


@dataclass(frozen=True)
class TrainingData:
    """A run's input: the folder relative to the project, its content's digest, how many rows, and of each column the
    type and the shape of a row."""

    folder: str
    digest: str
    count: int
    columns: Mapping[str, tuple[str, tuple[int, ...]]]

    def as_input(self):
        """What MLflow shows of a data set, and can open again as one that lies in a folder."""
        import numpy as np
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.types import Schema, TensorSpec

        specs = [TensorSpec(np.dtype(dtype), (-1, *shape), name) for name, (dtype, shape) in self.columns.items()]
        data = Dataset(
            name=self.folder,
            digest=self.digest[:36],
            source_type="local",
            source=json.dumps({"uri": self.folder}),
            schema=json.dumps({"mlflow_tensorspec": {"features": Schema(specs).to_json(), "targets": None}}),
            profile=json.dumps({"num_rows": self.count}),
        )
        return DatasetInput(data, tags=[InputTag("mlflow.data.context", "training")])


def open_run(config: TrackingConfig, root: Path, told: Described, data: TrainingData) -> TrackedRun:
    """The run of a job, begun or continued."""
    with uncollected():
        from mlflow.entities import Param, RunTag

    uri = config.absolute_uri(root)
    with reachable(uri):
        client = open_store(config, root)
        experiment = experiment_id(client, config, root)
        run_id = _run_id_of(client, experiment, told.job)
        if run_id:
            client.update_run(run_id, status="RUNNING")
            return TrackedRun(uri, run_id)
        run_id = client.create_run(experiment, run_name=told.name, tags=told.tags).info.run_id
        client.log_batch(run_id, params=[Param(key, str(value)[:6000]) for key, value in told.params.items()])
        client.log_inputs(run_id, datasets=[data.as_input()])
        client.log_batch(run_id, tags=[RunTag("data", data.digest)])
        return TrackedRun(uri, run_id)


def user() -> str:
    """Who is at work here; empty where a container's user has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _run_id_of(client, experiment: str, job: str) -> str | None:
    found = client.search_runs([experiment], f"tags.{JOB_TAG} = '{job}'", max_results=1)
    return found[0].info.run_id if found else None


def experiment_id(client, config: TrackingConfig, root: Path) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(config.experiment)
    if found is None:
        location = None if config.uri.startswith("http") else config.artifact_folder(root).as_uri()
        try:
            return client.create_experiment(config.experiment, artifact_location=location, tags=_CLASSIC)
        except MlflowException:  # another stage, running beside this one, was first
            found = client.get_experiment_by_name(config.experiment)
    for name in _CLASSIC.keys() - found.tags.keys():
        client.set_experiment_tag(found.experiment_id, name, _CLASSIC[name])
    return found.experiment_id


def close_run(run: TrackedRun, status: Literal["FINISHED", "FAILED", "KILLED"], files: Mapping[str, bytes]) -> None:
    """Ends a run. `files`, by path, are kept with it."""
    with reachable(run.uri):
        client = connect(run.uri)
        for name, content in files.items():
            _log_file(client, run.run_id, name, content)
        client.set_terminated(run.run_id, status)


class RunLogger:
    """Writes figures and pictures of one run, each step once, even when training repeats steps after a restart."""

    def __init__(self, run: TrackedRun):
        self._client = connect(run.uri)
        self._uri, self._run_id = run.uri, run.run_id
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
        with reachable(self._uri):
            self._client.log_batch(self._run_id, metrics=metrics)

    def precision(self, used: str, emulated: bool) -> None:
        """What the networks were computed in, as a tag; a run that went on elsewhere keeps it."""
        with reachable(self._uri):
            self._client.set_tag(self._run_id, "precision", used)

    def picture(self, name: str, png: bytes) -> None:
        with reachable(self._uri):
            _log_file(self._client, self._run_id, name, png)


def run_of_job(config: TrackingConfig, root: Path, job: str) -> TrackedRun | None:
    """The run that trained a job, if this tracking store has it."""
    uri = config.absolute_uri(root)
    with reachable(uri):
        client = open_store(config, root)
        experiment = experiment_id(client, config, root)
        run_id = _run_id_of(client, experiment, job)
        return TrackedRun(uri, run_id) if run_id else None


def log_evaluation(run: TrackedRun, figures: Mapping[str, float | None], files: Mapping[str, bytes]) -> None:
    """Adds figures, by name, and files, by path, to a run that has ended; figures that are None are left out, and those
    that it has already."""
    from mlflow.entities import Metric

    with reachable(run.uri):
        client, now = connect(run.uri), int(time.time() * 1000)
        known = client.get_run(run.run_id).data.metrics
        new = {name: float(value) for name, value in figures.items() if value is not None and known.get(name) != value}
        client.log_batch(run.run_id, metrics=[Metric(name, value, now, 0) for name, value in new.items()])
        for name, content in files.items():
            _log_file(client, run.run_id, name, content)


def _log_file(client, run_id: str, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(content)
        client.log_artifact(run_id, str(path), str(Path(name).parent))
