"""Looks at a training's checkpoints: a picture and figures beside the losses, drawn with the averaged weights.

A look is a function of the checkpoint, so it may be taken anywhere: by the only worker itself, or, where others would
have to wait, in a task of its own. Its figures are files beside the checkpoints, so that none is lost with a process.
"""

from __future__ import annotations

import json

import torch

from components.artifacts import run_folder
from components.data.dataset import Dataset
from components.families.base import JUDGE, Family
from components.training.loop import State, restore_nets
from infra.ray_train.job import Job, to_device
from infra.storage.store import Store

ROWS = 500  # of the training images and of those held out, that figures are made of
FOLDER = "looks"


class Validator:
    """Looks at states of one job, on a copy of the family, so that training does not notice."""

    def __init__(self, job: Job, device: torch.device | str):
        self._job, self._device = job, device
        self._shadow: Family | None = None

    def look(self, state: State) -> tuple[bytes | None, dict[str, float]]:
        """A PNG, if the family draws, and figures named `watch/...`."""
        shadow, dataset = self._load(state), Dataset(self._job.folder(self._job.data))
        rows = shadow.preview(dataset.take(torch.arange(min(20, len(dataset)))))
        picture = None if rows is None else shadow.medium.preview(rows, 10, scale=4)
        return picture, {f"watch/{name}": value for name, value in self._figures(shadow, dataset).items()}

    def _load(self, state: State) -> Family:
        if self._shadow is None:
            self._shadow = self._job.build()
            to_device(self._shadow, self._device)
        restore_nets(self._shadow, state)  # players that are not averaged are looked at as they are
        for net, weights in state.average.items():
            self._shadow.nets[net].load_state_dict(weights)
        self._shadow.nets.requires_grad_(False).eval()
        return self._shadow

    def _figures(self, shadow: Family, dataset: Dataset) -> dict[str, float]:
        folder = self._job.input(JUDGE)
        if folder is None:
            return {}
        judge = run_folder.load(folder, self._device).family
        held_out = Dataset(self._job.folder(self._job.held_out))
        return shadow.watch(_some(dataset, self._device), _some(held_out, self._device), judge)


def _some(dataset: Dataset, device: torch.device | str) -> dict[str, torch.Tensor]:
    columns = dataset.take(torch.arange(min(ROWS, len(dataset))))
    return {name: values.to(device) for name, values in columns.items()}


def keep(run: Store, step: int, figures: dict[str, float]) -> None:
    """Stores a look's figures in the run's storage."""
    (run / FOLDER).write(f"{step:07d}.json", json.dumps(figures, sort_keys=True).encode())


def kept(run: Store) -> dict[int, dict[str, float]]:
    """The figures of every look at a run, by step."""
    found = run / FOLDER
    names = [name for name in found.names() if name.endswith(".json") and not name.startswith(".")]
    return {int(name.removesuffix(".json")): json.loads(found.read(name)) for name in names}
