"""Which versions are served, and where their files lie: the registry's champion, or promoted.json's where there is no
registry. Every version is copied once into a folder of its own, so that no promotion changes files under a server; a
node that does not see that folder fetches its own copy. A copy is served when its content has the hash that it was
made with; one that is truncated or altered is made again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import Field, ValidationError

from components.artifacts import pyfunc, run_folder
from components.config import Strict
from components.errors import InputError, SamplerError
from components.families.base import Sampler
from components.files import sha256_folder, whole_folder, write_json, write_whole
from infra.config import TrackingConfig
from infra.serving.served_model import Served, ServedModel
from infra.tracking.registry import SHA256_TAG, Registry, Version

logger = logging.getLogger(__name__)


class ModelStore(Strict):
    """Where versions are looked up. `root` is absolute; `promoted` and `cache` are relative to it, or absolute. Without
    `tracking` no registry is asked. `versions`: numbers of those that are served beside the champion."""

    root: str
    model: str = Field("latent-foundry", min_length=1)
    promoted: str = "promoted.json"
    cache: str = ".cache/served"
    tracking: TrackingConfig | None = None
    versions: tuple[str, ...] = ()


def open_model(folder: Path, **facts: Any) -> ServedModel:
    """A run folder as a model to be served; `facts` are the other fields. Raises SamplerError of a folder that cannot
    be loaded, or is no sampler's."""
    run = run_folder.load(folder)
    if not isinstance(run.family, Sampler):
        raise SamplerError(f"{folder}: {run.config.family!r} does not generate images; it cannot be served")
    told = {"accepts": tuple(sorted(run.family.accepts)), "sizes": run.family.sizes}
    return ServedModel(folder=str(folder), run=run.config, **told, **facts)


def read_promoted(path: Path) -> ServedModel:
    """The champion that promoted.json names; its run folder is relative to the file. Raises SamplerError."""
    try:
        promoted = json.loads(path.read_text())
        if promoted.get("version", "") is None:
            raise SamplerError(f"{path}: nobody reigns: {promoted['why']}")
        return open_model(
            (path.parent / promoted["run_folder"]).resolve(),
            name=promoted["model"],
            version=str(promoted["version"]),
            **{key: promoted[key] for key in ("settings", "figures", "definitions", "hash") if key in promoted},
        )
    except FileNotFoundError:
        raise SamplerError(f"{path}: missing; `make demo` or `dvc repro promote` writes it") from None
    except KeyError as error:
        raise SamplerError(f"{path}: no {error.args[0]!r} in it; expected what `promote` writes") from None
    except (json.JSONDecodeError, AttributeError, TypeError, ValidationError) as error:
        raise SamplerError(f"{path}: not what `promote` writes ({str(error).splitlines()[0]})") from None


def folder_here(model: ServedModel, model_store: ModelStore) -> Path:
    """A served version's run folder on this machine. Raises InputError where it has to be copied and there is nothing
    to copy from."""
    champions = Champions(model_store)
    return copied(Path(model.folder).parent, lambda folder: champions.write(model, folder)) / pyfunc.SAMPLER


def copied(place: Path, write: Callable[[Path], None]) -> Path:
    """The folder `place`, whose content has the hash of when it was written; else `write` makes it anew."""
    place.parent.mkdir(parents=True, exist_ok=True)
    checksum = place.parent / f".{place.name}.sha256"
    with FileLock(place.parent / f".{place.name}.lock"):  # the replicas of a node start together
        if place.is_dir() and not _is_whole(place, checksum):
            logger.warning("%s: truncated or altered; it is copied again", place)
            checksum.unlink(missing_ok=True)
        if not checksum.is_file() or not place.is_dir():
            with whole_folder(place) as folder:
                write(folder)
                digest = sha256_folder(folder)
            write_whole(checksum, digest)
    return place


def _is_whole(place: Path, checksum: Path) -> bool:
    return checksum.is_file() and checksum.read_text() == sha256_folder(place)


class _PromotedAnew(Exception):
    """promoted.json changed while its files were copied, which may be of either."""


class Champions:
    """Looks up a model_store again and again. Nothing that was seen before is loaded again."""

    def __init__(self, model_store: ModelStore):
        self.model_store, self.root = model_store, Path(model_store.root)
        self.promoted_path = self.root / model_store.promoted
        self._seen: dict[str, ServedModel] = {}
        self._read: tuple[object, ServedModel] | None = None  # the last promoted.json, by its time and size

    def first(self) -> Served:
        """The champion as promoted.json has it, which takes no registry; else like `look`."""
        return (self.promoted(),) if self.promoted_path.is_file() else self.look()

    def look(self) -> Served:
        """What shall be served now, the champion first. Raises InputError if there is none, or none can be read."""
        registry = self.registry()
        champion = registry.champion() if registry else None
        if champion is None:
            if self.model_store.versions:
                raise InputError("serve.versions: there is no registry with a champion to take them from")
            return (self.promoted(),)
        others = [number for number in self.model_store.versions if number != champion.number]
        return tuple(self._registered(registry, one) for one in (champion, *map(registry.version, others)))

    def promoted(self) -> ServedModel:
        """promoted.json's champion, its files copied."""
        while True:
            stamp = self._stamp()
            if self._read and self._read[0] == stamp:
                return self._read[1]
            found = read_promoted(self.promoted_path)
            try:
                place = copied(self._place_of(found), lambda folder, found=found: self._write_promoted(found, folder))
            except _PromotedAnew:
                continue
            self._read = stamp, found.model_copy(update={"folder": str(place / pyfunc.SAMPLER)})

    def write(self, model: ServedModel, folder: Path) -> None:
        """Copies a version's files anew, from where promoted.json has them or from the registry. Raises InputError."""
        if self.promoted_path.is_file():
            found = read_promoted(self.promoted_path)
            if self._place_of(found).name == Path(model.folder).parent.name:
                return self._write_promoted(found, folder)
        registry = self.registry()
        if registry is None:
            raise InputError(f"{model.folder}: not on this node, and there is no registry to fetch {model.id} from")
        registry.fetch(registry.version(model.version), folder)

    def _write_promoted(self, found: ServedModel, folder: Path) -> None:
        stamp = self._stamp()
        shutil.copytree(found.folder, folder / pyfunc.SAMPLER)
        told = {name: getattr(found, name) for name in ("settings", "figures", "definitions")}
        write_json(folder / pyfunc.CANDIDATE, told)
        if self._stamp() != stamp:
            raise _PromotedAnew
        expected = json.loads(self.promoted_path.read_text()).get(SHA256_TAG)
        if expected and expected != sha256_folder(folder / pyfunc.SAMPLER):
            raise SamplerError(f"{found.folder}: altered since it was promoted; `dvc checkout` brings it back")

    def _stamp(self) -> object:
        if not self.promoted_path.is_file():
            return None
        told = self.promoted_path.stat()
        return told.st_mtime_ns, told.st_size, told.st_ino

    def registry(self) -> Registry | None:
        tracking = self.model_store.tracking
        if tracking is None or not tracking.is_there(self.root):
            return None  # asking would create it
        return Registry(tracking, self.root, self.model_store.model)

    def _registered(self, registry: Registry, version: Version) -> ServedModel:
        place = self._place(version.number, version.content)
        if place.name not in self._seen:
            copied(place, lambda folder: registry.fetch(version, folder))
            told = json.loads((place / pyfunc.CANDIDATE).read_text())
            self._seen[place.name] = open_model(
                place / pyfunc.SAMPLER,
                name=self.model_store.model,
                version=version.number,
                settings=told["settings"],
                figures=told["figures"],
                definitions=told.get("definitions", ()),
                hash=version.content,
            )
        return self._seen[place.name]

    def _place_of(self, model: ServedModel) -> Path:
        return self._place(model.version, model.hash or model.run.provenance.job)

    def _place(self, version: str, content: str) -> Path:
        return self.root / self.model_store.cache / f"{self.model_store.model}-{version}-{content[:12]}"
