"""A training as it is sent to a cluster: everything that decides its result, in one value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from components import run_folder
from components.config import Strict
from components.families import FAMILIES
from components.families.base import DataInfo, Family
from components.metrics import pretrained
from components.training import TrainingConfig


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
    content is part of `data_hash`.
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

    def build(self) -> Family:
        """The family with its initial weights, equal in every process, and its pretrained nets loaded."""
        torch.manual_seed(self.seed)  # layers initialise from the global generator
        family = FAMILIES[self.family](self.config, self.info)
        trained = Path(self.start) if self.start else None
        for net in family.pretrained if trained is None else family.kept:
            run_folder.load_weights(family.nets[net], (trained or Path(self.data)) / f"{net}.safetensors")
        for name, path in self.borrowed:
            family.borrow(name, _borrowed(name, path))
        return family


def _borrowed(name: str, path: str) -> nn.Module:
    """The network that Family.borrows speaks of. Raises InputError if it cannot be had."""
    if name == "lpips":
        return pretrained.lpips_net(path, "perceptual.lpips")
    return run_folder.load(Path(path)).family.nets["classifier"]
