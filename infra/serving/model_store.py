"""Which versions are served, and where their files lie: the registry's champion, or promoted.json's where there is no
registry. Every version is copied once into a folder of its own, so that no promotion changes files under a server; a
node that does not see that folder fetches its own copy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import Field, ValidationError

from components.artifacts import pyfunc, run_folder
from components.config import Strict
from components.errors import InputError, SamplerError
from components.families.base import Sampler
from components.files import whole_folder, write_json
from infra.config import TrackingConfig
from infra.serving.openai_api import Served, ServedModel
from infra.tracking.registry import Registry, Version

SQLITE = "sqlite:///"


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
    return ServedModel(folder=str(folder), run=run.config, accepts=tuple(sorted(run.family.accepts)), **facts)


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
            **{key: promoted[key] for key in ("settings", "figures", "hash") if key in promoted},
        )
    except FileNotFoundError:
        raise SamplerError(f"{path}: missing; `make demo` or `dvc repro promote` writes it") from None
    except KeyError as error:
        raise SamplerError(f"{path}: no {error.args[0]!r} in it; expected what `promote` writes") from None
    except (json.JSONDecodeError, AttributeError, TypeError, ValidationError) as error:
        raise SamplerError(f"{path}: not what `promote` writes ({str(error).splitlines()[0]})") from None


def folder_here(model: ServedModel, model_store: ModelStore) -> Path:
    """A served version's run folder on this machine. Raises InputError where it has to come from a registry and there
    is none."""
    folder = Path(model.folder)
    place = folder.parent
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.parent / f".{place.name}.lock"):  # the replicas of a node start together
        if not folder.is_dir():
            registry = Champions(model_store).registry()
            if registry is None:
                raise InputError(f"{folder}: not on this node, and there is no registry to fetch {model.id} from")
            with whole_folder(place) as target:
                registry.fetch(registry.version(model.version), target)
    return folder


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
            place = self._place(found.version, found.hash or found.run.provenance.job)
            if not place.is_dir():
                with whole_folder(place) as folder:
                    shutil.copytree(found.folder, folder / pyfunc.SAMPLER)
                    write_json(folder / pyfunc.CANDIDATE, {"settings": found.settings, "figures": found.figures})
                    if self._stamp() != stamp:
                        continue  # promoted anew meanwhile: the copy may be of either
            self._read = stamp, found.model_copy(update={"folder": str(place / pyfunc.SAMPLER)})

    def _stamp(self) -> object:
        if not self.promoted_path.is_file():
            return None
        told = self.promoted_path.stat()
        return told.st_mtime_ns, told.st_size, told.st_ino

    def registry(self) -> Registry | None:
        tracking = self.model_store.tracking
        if tracking is None:
            return None
        uri = tracking.absolute_uri(self.root)
        if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
            return None  # asking would create it
        return Registry(tracking, self.root, self.model_store.model)

    def _registered(self, registry: Registry, version: Version) -> ServedModel:
        place = self._place(version.number, version.content)
        if place.name not in self._seen:
            if not place.is_dir():
                with whole_folder(place) as folder:
                    registry.fetch(version, folder)
            told = json.loads((place / pyfunc.CANDIDATE).read_text())
            self._seen[place.name] = open_model(
                place / pyfunc.SAMPLER,
                name=self.model_store.model,
                version=version.number,
                settings=told["settings"],
                figures=told["figures"],
                hash=version.content,
            )
        return self._seen[place.name]

    def _place(self, version: str, content: str) -> Path:
        return self.root / self.model_store.cache / f"{self.model_store.model}-{version}-{content[:12]}"
