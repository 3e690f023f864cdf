"""A training as it is sent to a cluster: everything that decides its result, in one value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from components.artifacts import run_folder
from components.config import Strict
from components.data.info import DataInfo
from components.evaluation import pretrained
from components.families import family_class
from components.families.base import START, Family, Role
from components.training.loop import TrainingConfig
from infra.storage.staging import Staged, local, stage


class Input(NamedTuple):
    """A trained run or a file of weights that a training reads beside its data: an absolute path, and its content's
    hash."""

    role: str
    path: str
    hash: str


@dataclass(frozen=True)
class Job:
    """Everything that decides a training's result. Equal jobs have equal hashes and continue each other's runs.

    `data` is the absolute folder of the data set, `data_hash` and `code_hash` the content of it and of the code that
    the training runs through. `held_out`: the absolute folder of a data set that checkpoints are validated on; empty
    where none is needed. `staged`: by folder, where workers that do not see the driver's files get them.
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
    inputs: tuple[Input, ...] = ()
    held_out: str = ""
    held_out_hash: str = ""  # of its content, where that decides which checkpoint is kept
    staged: Mapping[str, Staged] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        return self._hash(self.training.model_dump(mode="json"))

    @property
    def endless_hash(self) -> str:
        """Of the job whatever its length, and whatever it tells and stores on the way."""
        return self._hash(self.training.model_dump(mode="json", exclude={"steps", "report_every", "save_every"}))

    def _hash(self, training: dict) -> str:
        facts = {
            "family": self.family,
            "config": self.config.model_dump(mode="json"),
            "info": self.info.model_dump(mode="json"),
            "training": training,
            "seed": self.seed,
            "data": self.data_hash,
            "inputs": {given.role: given.hash for given in self.inputs},
            "code": self.code_hash,
        }
        if self.held_out_hash:
            facts["held_out"] = self.held_out_hash
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def in_storage(self, storage: str, cache_bytes: int) -> Job:
        """The same job with its folders in a bucket. Raises DataError if they cannot be brought there."""
        paths = [Path(given.path) for given in self.inputs]
        folders = {self.data, *filter(None, [self.held_out])}
        folders |= {str(path.parent if path.is_file() else path) for path in paths}
        return replace(self, staged={folder: stage(Path(folder), storage, cache_bytes) for folder in sorted(folders)})

    def folder(self, name: str) -> Path:
        """One of the job's folders, or a file right below one, as this machine has it."""
        path = Path(name)
        if name not in self.staged and str(path.parent) in self.staged:
            return local(self.staged[str(path.parent)]) / path.name
        return local(self.staged.get(name, path))

    def input(self, role: str) -> Path | None:
        """Where this machine has the input of a role; None without one."""
        return next((self.folder(given.path) for given in self.inputs if given.role == role), None)

    def build(self) -> Family:
        """The family with its initial weights, equal in every process, its pretrained nets loaded and its inputs
        received. Raises InputError of an input that is damaged."""
        torch.manual_seed(self.seed)  # layers initialise from the global generator
        kind = family_class(self.family)
        family = kind(self.config, self.info)
        start = self.input(START)
        is_held = self.training.steps == 0  # as it is, with what it kept of its own inputs
        received = set() if is_held else {net for role in self.info.inputs for net in family.nets_of_input(role)}
        for net in family.pretrained if start is None else family.kept:
            file = net if start is not None else family.in_data.get(net, net)
            path = (start or self.folder(self.data)) / f"{file}.safetensors"
            is_new = start is not None and net in family.added and not path.is_file()
            if net not in received and not is_new:
                run_folder.load_weights(family.nets[net], path)
        for role, expected in kind.roles(self.config).items():
            path = self.input(role)
            if path is not None:
                family.receive(role, _load(path, role, expected))
        return family


def _load(path: Path, role: str, expected: Role) -> Family | nn.Module:
    given = pretrained.lpips_net(str(path), role) if expected.is_file else run_folder.load(path).family
    (given if expected.is_file else given.nets).requires_grad_(False).eval()
    return given
