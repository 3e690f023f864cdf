"""The model registry: versions of one model, the alias that says which reigns, and a record of every move.

A version is whole before the alias can point at it, and the alias moves in one write to the store; so whoever is killed
when, it points at the old version or the new one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from components.artifacts import pyfunc
from components.errors import InputError
from components.files import sha256_folder
from infra.config import TrackingConfig
from infra.tracking import runs, shipped_model

CHAMPION = "champion"
CONTENT_TAG = "content"
SHA256_TAG = "sha256"  # of the sampler's files
WITHDRAWN_TAG = "withdrawn"
_MOVE_TAG = "move-"


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
    description: str = ""


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
            yield runs.open_store(self.config, self.root)

    def is_there(self) -> bool:
        """Whether there is a store at all."""
        return self.config.is_there(self.root)

    def expect(self) -> None:
        """Raises InputError if there is no store, as in a clone: it is no part of what DVC or git keep."""
        if not self.is_there():
            raise InputError(
                f"tracking.uri: there is no store in {self.config.database(self.root)}, so no registry here; copy it "
                f"with {self.config.artifacts}/ from where the champion was promoted, or set tracking.uri to a server"
            )

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
        self.expect()
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
                shipped_model.save(model, entry.folder, entry.content, entry.candidate, entry.pictures)
                client.log_artifacts(run_id, str(model), path)
            created = client.create_model_version(
                self.model,
                f"runs:/{run_id}/{path}",
                run_id,
                tags={CONTENT_TAG: entry.content, SHA256_TAG: sha256_folder(entry.folder), **entry.tags},
                description=entry.description,
            )
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
        from mlflow.exceptions import MlflowException

        with self._client() as client, tempfile.TemporaryDirectory() as temporary:
            try:
                found = Path(client.download_artifacts(version.run_id, f"{version.path}/data", temporary))
            except (OSError, MlflowException) as error:
                place = client.get_run(version.run_id).info.artifact_uri
                raise InputError(
                    f"{self.model} version {version.number}: its files are not in {place} ({runs.one_line(error)})"
                ) from None
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
        """Every move on record, oldest first; none of a model that nobody registered yet."""
        from mlflow.exceptions import MlflowException

        self.expect()
        with self._client() as client:
            try:
                tags = client.get_registered_model(self.model).tags
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return []
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
    return f"{runs.user() or 'unknown'}@{socket.gethostname()}"


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
