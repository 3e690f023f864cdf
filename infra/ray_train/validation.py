"""Checkpoint validation: a picture and figures beside the losses, with the averaged weights.

It is a function of the checkpoint, so it may run anywhere: in the only worker itself, or, where others would have to
wait, in a task of its own. Its figures are files beside the checkpoints, so that none is lost with a process.
"""

from __future__ import annotations

import functools
import json

import torch

from components.artifacts import run_folder
from components.artifacts.run_folder import Best
from components.data.dataset import Dataset
from components.errors import TrainingError
from components.evaluation.held_out import HeldOutRows
from components.families.base import JUDGE, Family
from components.metrics.figures import VALIDATION, Figures, as_json, definitions_as_json, from_json, values
from components.training.loop import State, TrainingConfig, restore_nets
from components.training.precision import Precision, fastest
from infra.ray_train.job import Job
from infra.storage.store import Store

ROWS = 500  # of the training images and of those held out, that figures are made of
FOLDER = VALIDATION
BEST, ENDING = "best", ".safetensors"  # beside it: averages of the best checkpoint, by step


class Validator:
    """Validates states of one job, on a copy of the family, so that training does not notice."""

    def __init__(self, job: Job, device: torch.device | str):
        self._job, self._device = job, device

    def check(self) -> None:
        """Raises InputError of a judge or of held-out rows that are not there or not whole, before any step is made."""
        if self._job.held_out:
            Dataset(self._job.folder(self._job.held_out))
        _ = self._judge  # opened once, for all checkpoints

    def validate(self, state: State) -> tuple[bytes | None, Figures]:
        """A PNG, if the family draws, and the figures of its weights."""
        shadow, dataset = self._shadow, Dataset(self._job.folder(self._job.data))
        restore_nets(shadow, state)
        shadow.nets.requires_grad_(False).eval()
        precision = state.precision or fastest(torch.device(self._device).type)
        live = self._held_out_losses(True, precision)
        for net, weights in state.average.items():  # networks that are not averaged are validated as they are
            shadow.nets[net].load_state_dict(weights)
        rows = shadow.preview(dataset.take(torch.arange(min(20, len(dataset)))))
        picture = None if rows is None else shadow.medium.preview(rows, 10, scale=4)
        return picture, self._held_out_losses(False, precision) | live | self._judged(dataset)

    @functools.cached_property
    def _shadow(self) -> Family:
        """The copy of the family, which holds one state after the other."""
        family = self._job.build()
        family.to(self._device)
        return family

    @functools.cached_property
    def _judge(self) -> Family | None:
        folder = self._job.input(JUDGE)
        return None if folder is None else run_folder.load(folder, self._device).family

    @functools.cached_property
    def _rows(self) -> HeldOutRows:
        folders = (self._job.folder(name) for name in (self._job.data, self._job.held_out))
        return HeldOutRows(self._shadow, *map(Dataset, folders), self._job.training)

    def _held_out_losses(self, live: bool, precision: Precision) -> Figures:
        wanted = self._job.held_out and self._shadow.held_out is not None
        return self._rows.figures(self._shadow, live, precision) if wanted else {}

    def _judged(self, dataset: Dataset) -> Figures:
        """What the family measures by a judge, if there is one, or without."""
        if self._judge is None and not self._shadow.checkpoint_figures:
            return {}
        held_out = Dataset(self._job.folder(self._job.held_out))
        return self._shadow.validate(_some(dataset, self._device), _some(held_out, self._device), self._judge)


def _some(dataset: Dataset, device: torch.device | str) -> dict[str, torch.Tensor]:
    columns = dataset.take(torch.arange(min(ROWS, len(dataset))))
    return {name: values.to(device) for name, values in columns.items()}


def tracked(figures: Figures) -> dict[str, float]:
    """The numbers by the names that history and tracker give them, which tell them from losses."""
    return {f"{VALIDATION}/{name}": value for name, value in values(figures).items()}


def keep(run: Store, step: int, figures: Figures) -> None:
    """Stores a checkpoint's figures, with their definitions, in the run's storage."""
    content = {**as_json(figures), "definitions": definitions_as_json([figures])}
    (run / FOLDER).write(f"{step:07d}.json", json.dumps(content, sort_keys=True).encode())


def kept(run: Store) -> dict[int, Figures]:
    """The figures of every validated checkpoint of a run, by step."""
    found = run / FOLDER
    names = [name for name in found.names() if name.endswith(".json") and not name.startswith(".")]
    stored = {int(name.removesuffix(".json")): json.loads(found.read(name)) for name in names}
    return {step: from_json(one, one["definitions"], None, str(found)) for step, one in stored.items()}


def keep_best(run: Store, state: State, figures: Figures, config: TrainingConfig) -> None:
    """Stores a checkpoint's averages where training.keep asks for the best and none that is stored is as good. Which
    one is left does not depend on the order in which checkpoints are validated. Raises TrainingError of a figure that
    they do not have, or that is better neither way."""
    if config.keep != "best":
        return
    figure = figures.get(config.keep_by)
    if figure is None or figure.definition.better is None:
        comparable = [name for name, one in figures.items() if one.definition.better is not None]
        expected = f"expected one of {', '.join(comparable)}" if comparable else "its checkpoints have none"
        raise TrainingError(
            f"training.keep_by: no figure {config.keep_by!r} to keep the best checkpoint by; {expected}"
        )
    measured, folder = kept(run), run / BEST
    ours = (figure.definition.cost(figure.value), state.step)
    stored = {int(name.removesuffix(ENDING)): name for name in folder.names() if name.endswith(ENDING)}
    costs = {step: _cost(measured[step], config.keep_by) for step in stored if step in measured}
    if any((cost, step) < ours for step, cost in costs.items()):
        return
    best = Best(state.step, config.keep_by, figure.value, state.average)
    folder.write(f"{state.step:07d}{ENDING}", best.as_bytes())
    for step in costs:
        if (costs[step], step) > ours:
            folder.remove(stored[step])


def best(run: Store, config: TrainingConfig) -> Best | None:
    """The best checkpoint that a run keeps; None where nobody asked for it. Raises TrainingError if it is not there."""
    if config.keep != "best":
        return None
    measured, folder = kept(run), run / BEST
    steps = [int(name.removesuffix(ENDING)) for name in folder.names() if name.endswith(ENDING)]
    steps = [step for step in steps if config.keep_by in measured.get(step, {})]
    if not steps:
        raise TrainingError(f"{folder}: no checkpoint was measured by {config.keep_by!r}, which is training.keep_by")
    step = min(steps, key=lambda step: (_cost(measured[step], config.keep_by), step))
    with folder.on_disk() as local:
        return Best.from_file(local / f"{step:07d}{ENDING}")


def _cost(figures: Figures, name: str) -> float:
    return figures[name].definition.cost(figures[name].value)
