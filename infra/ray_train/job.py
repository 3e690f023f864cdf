"""A training as it is sent to a cluster: everything that decides its result, in one value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from components.artifacts import run_folder
from components.config import Strict
from components.evaluation import pretrained
from components.families import family_class
from components.families.base import DataInfo, Family
from components.training.loop import TrainingConfig
from infra.storage.staging import Staged, local, stage


@dataclass(frozen=True)
class Watch:
    """What a look at a checkpoint compares with: absolute folders of a judge's run and of images held out."""

    judge: str
    held_out: str


@dataclass(frozen=True)
class Job:
    """Everything that decides a training's result. Equal jobs have equal hashes and continue each other's runs.

    `data` is the absolute folder of the data set, `data_hash` and `code_hash` the content of it and of the code.
    `watch` decides figures beside the training, not its result. `borrowed`: where the networks lie that the family
    looks through while training, by what it calls them; `start`: the run folder whose weights it begins with. Their
    content is part of `data_hash`. `staged`: by folder, where workers that do not see the driver's files get them.
    """

    name: str
    family: str
    config: Strict
    info: DataInfo
    training: TrainingConfig
    seed: int
    data: str
    data_hash: str
    code_hash: str
    watch: Watch | None = None
    borrowed: tuple[tuple[str, str], ...] = ()
    start: str = ""
    staged: Mapping[str, Staged] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        facts = {
            "family": self.family,
            "config": self.config.model_dump(mode="json"),
            "info": self.info.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "seed": self.seed,
            "data": self.data_hash,
            "code": self.code_hash,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def in_storage(self, storage: str, cache_bytes: int) -> Job:
        """The same job with its folders in a bucket. Raises DataError if they cannot be brought there."""
        folders = {self.data, *((self.watch.judge, self.watch.held_out) if self.watch else ())}
        folders |= {str(Path(path).parent) if Path(path).is_file() else path for _, path in self.borrowed}
        folders |= {self.start} if self.start else set()
        return replace(self, staged={folder: stage(Path(folder), storage, cache_bytes) for folder in sorted(folders)})

    def folder(self, name: str) -> Path:
        """One of the job's folders, or a file right below one, as this machine has it."""
        path = Path(name)
        if name not in self.staged and str(path.parent) in self.staged:
            return local(self.staged[str(path.parent)]) / path.name
        return local(self.staged.get(name, path))

    def build(self) -> Family:
        """The family with its initial weights, equal in every process, and its pretrained nets loaded."""
        torch.manual_seed(self.seed)  # layers initialise from the global generator
        family = family_class(self.family)(self.config, self.info)
        begin = self.start or self.data
        for net in family.kept if self.start else family.pretrained:
            run_folder.load_weights(family.nets[net], self.folder(begin) / f"{net}.safetensors")
        for name, path in self.borrowed:
            family.borrow(name, _borrowed(name, self.folder(path)))
        return family


def _borrowed(name: str, path: Path) -> nn.Module:
    """The network that Family.borrows speaks of. Raises InputError if it cannot be had."""
    if name == "lpips":
        return pretrained.lpips_net(str(path), "perceptual.lpips")
    return run_folder.load(path).family.nets["classifier"]
