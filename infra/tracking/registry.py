"""The model registry: versions of one model, the alias that says which reigns, and a record of every move.

A version is whole before the alias can point at it, and the alias moves in one write to the store; so whoever is killed
when, it points at the old version or the new one.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from components.artifacts import pyfunc, run_folder
from components.config import by_path
from components.errors import InputError
from components.families.base import Sampler
from components.files import sha256_folder, write_json
from infra.config import TrackingConfig
from infra.tracking import runs

CHAMPION = "champion"
CONTENT_TAG = "content"
SHA256_TAG = "sha256"  # of the sampler's files
WITHDRAWN_TAG = "withdrawn"
_MOVE_TAG = "move-"
_COMPONENTS = Path(pyfunc.__file__).parents[1]
# what loading a version needs beside Python; importing each is a second's work that MLflow's own guess would do
_REQUIREMENTS = ("torch", "numpy", "pydantic", "safetensors", "pillow", "pandas")


@dataclass(frozen=True)
class Entry:
    """What becomes a version. `content` is the hash of sampler and settings; `candidate` holds settings, figures,
    protocol and lineage; `pictures` are PNGs by name; `job` is that of the training."""

    folder: Path
    content: str
    job: str
    candidate: Mapping[str, object]
    pictures: Mapping[str, bytes]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Version:
    """`withdrawn` tells why a person took it back, and is empty otherwise."""

    number: str
    content: str
    withdrawn: str
    run_id: str
    path: str  # of its model below the run's artifacts
    sha256: str = ""  # of its sampler's files; not told of versions registered before that was kept


@dataclass(frozen=True)
class Move:
    """One change of the champion; `made` is false of one that was begun and did not come about."""

    number: int
    left: str
    to: str
    who: str
    when: str
    why: str
    made: bool


class Registry:
    """One registered model of the store that `config` names."""

    def __init__(self, config: TrackingConfig, root: Path, model: str):
        self.config, self.root, self.model = config, root, model
        self.uri = config.absolute_uri(root)

    @contextlib.contextmanager
    def _client(self) -> Iterator:
        with runs.reachable(self.uri):
            yield runs.connect(self.uri)

    def champion(self) -> Version | None:
        from mlflow.exceptions import MlflowException

        with self._client() as client:
            try:
                return _version(client.get_model_version_by_alias(self.model, CHAMPION))
            except MlflowException as error:
                # no model yet, no alias yet, or an alias whose version somebody deleted
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def versions(self) -> list[Version]:
        """All that were registered here, oldest first."""
        with self._client() as client:
            found = client.search_model_versions(f"name = '{self.model}'")
        return sorted(
            (_version(version) for version in found if CONTENT_TAG in version.tags), key=lambda one: int(one.number)
        )

    def version(self, number: str) -> Version:
        """Raises InputError listing those there are."""
        known = {version.number: version for version in self.versions()}
        if number not in known:
            raise InputError(f"{self.model}: no version {number!r}; expected one of {', '.join(known) or 'none yet'}")
        return known[number]

    def register(self, entry: Entry) -> tuple[Version, bool]:
        """The version with this content, and whether it is new: promoting twice registers once."""
        from mlflow.exceptions import MlflowException

        same = [version for version in self.versions() if version.content == entry.content]
        if same:
            return same[-1], False
        with self._client() as client:
            with contextlib.suppress(MlflowException):  # it is there already
                client.create_registered_model(self.model)
            run = runs.run_of_job(self.config, self.root, entry.job)
            run_id = run.run_id if run else self._import_run(client, entry)
            path = f"model-{entry.content[:12]}"
            with tempfile.TemporaryDirectory() as temporary:
                model = Path(temporary) / "model"
                _save_pyfunc(model, entry)
                client.log_artifacts(run_id, str(model), path)
            tags = {CONTENT_TAG: entry.content, SHA256_TAG: sha256_folder(entry.folder), **entry.tags}
            created = client.create_model_version(self.model, f"runs:/{run_id}/{path}", run_id, tags=tags)
            return _version(created), True

    def _import_run(self, client, entry: Entry) -> str:
        """A run for a model that was trained under another tracking store, as after `dvc pull`."""
        experiment = runs.experiment_id(client, self.config, self.root)
        run_id = client.create_run(experiment, run_name=f"import {entry.folder.name}").info.run_id
        client.set_terminated(run_id)
        return run_id

    def fetch(self, version: Version, target: Path) -> Path:
        """Copies what was registered into the folder `target`: sampler/, candidate.json, pictures. Raises InputError if
        it is gone or altered."""
        with self._client() as client, tempfile.TemporaryDirectory() as temporary:
            try:
                found = Path(client.download_artifacts(version.run_id, f"{version.path}/data", temporary))
            except OSError as error:
                raise InputError(f"{self.model} version {version.number}: its files are gone ({error})") from None
            (content,) = found.iterdir()
            if version.sha256 and sha256_folder(content / pyfunc.SAMPLER) != version.sha256:
                raise InputError(
                    f"{self.model} version {version.number}: its files were altered since it was registered"
                )
            shutil.copytree(content, target, dirs_exist_ok=True)
        return target

    def move(self, to: Version, why: str, withdraw: bool = False) -> None:
        """Points the alias at a version. The record comes first, so that no move goes unrecorded. `withdraw`: the
        version that is left shall not be promoted again by itself, and the one that is moved to may."""
        left = self.champion()
        told = {"left": left.number if left else "", "to": to.number, "who": who(), "when": now(), "why": why}
        with self._client() as client:
            number = 1 + max((move.number for move in self.moves()), default=0)
            client.set_registered_model_tag(self.model, f"{_MOVE_TAG}{number:06d}", json.dumps(told))
            if withdraw and left and left.number != to.number:
                client.set_model_version_tag(self.model, left.number, WITHDRAWN_TAG, json.dumps(told))
            if to.withdrawn:
                client.delete_model_version_tag(self.model, to.number, WITHDRAWN_TAG)
            client.set_registered_model_alias(self.model, CHAMPION, to.number)

    def moves(self) -> list[Move]:
        """Every move on record, oldest first."""
        with self._client() as client:
            tags = client.get_registered_model(self.model).tags
        champion = self.champion()
        told = {int(key.removeprefix(_MOVE_TAG)): json.loads(tags[key]) for key in tags if key.startswith(_MOVE_TAG)}
        numbers = sorted(told)
        # what a move led to is where the next one started
        reached = [told[number]["left"] for number in numbers[1:]] + [champion.number if champion else ""]
        return [
            Move(number, **told[number], made=told[number]["to"] == after)
            for number, after in zip(numbers, reached, strict=False)  # of no move, nothing was reached
        ]


def who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user may have no name
        return f"unknown@{socket.gethostname()}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(found) -> Version:
    told = json.loads(found.tags.get(WITHDRAWN_TAG, "{}"))
    withdrawn = f"{told['who']}, {told['when']}: {told['why']}" if told else ""
    path = found.source.removeprefix(f"runs:/{found.run_id}/")
    tags = found.tags
    return Version(
        str(found.version), tags.get(CONTENT_TAG, ""), withdrawn, found.run_id, path, tags.get(SHA256_TAG, "")
    )


def _save_pyfunc(target: Path, entry: Entry) -> None:
    """Writes an MLflow model that loads without this project: sampler, candidate, pictures, and components/ as code."""

    import mlflow.pyfunc

    sampler = run_folder.load(entry.folder).family
    assert isinstance(sampler, Sampler)
    with tempfile.TemporaryDirectory() as temporary:
        data, code = Path(temporary) / "champion", Path(temporary) / "components"
        shutil.copytree(entry.folder, data / pyfunc.SAMPLER)
        write_json(data / pyfunc.CANDIDATE, dict(entry.candidate))
        for name, png in entry.pictures.items():
            (data / name).write_bytes(png)
        shutil.copytree(_COMPONENTS, code, ignore=shutil.ignore_patterns("__pycache__"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it would sample an example at every promotion
            mlflow.pyfunc.save_model(
                target,
                loader_module=pyfunc.__name__,
                data_path=str(data),
                code_paths=[str(code)],
                signature=_signature(entry, sampler),
                pip_requirements=requirements(sampler),
            )


def requirements(sampler: Sampler) -> list[str]:
    """What loading a sampler needs, at the versions that are installed here."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in (*_REQUIREMENTS, *sampler.libraries)]


def _signature(entry: Entry, sampler: Sampler):
    """What a version takes and gives: columns seed and label or prompt, settings as parameters, those of a composite's
    parts as `redraw.solver`, and the medium's arrays: images are (N, H, W, C) uint8."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    columns = [ColSpec("long", "seed")]
    if sampler.conditional:
        columns.append(ColSpec("long", "label", required=False))
    if sampler.texts:
        columns.append(ColSpec("string", "prompt", required=False))
    kinds = {bool: "boolean", int: "long", float: "double", str: "string"}
    params = []
    for name, value in by_path(entry.candidate["settings"]).items():
        several = isinstance(value, list | tuple) and bool(value)
        kind = kinds.get(type(value[0] if several else value))
        if kind:  # a setting that is off has no type to announce; it keeps the promoted value
            params.append(ParamSpec(name, kind, list(value) if several else value, (-1,) if several else None))
    medium = sampler.medium
    made = TensorSpec(np.dtype(medium.dtype), (-1, *medium.array_shape(sampler.row_shape)))
    return ModelSignature(Schema(columns), Schema([made]), ParamSchema(params) if params else None)
