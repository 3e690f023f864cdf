"""A run folder: a trained model that needs nothing else to be measured, exported or served.

    config.json              family, its config, what it knows of its data, provenance
    <net>.safetensors        weights of each kept net (the average over training)
    averages.safetensors     averages kept on the way, if training.ema_snapshots asked for them
    best.safetensors         the averages of the best checkpoint, if training.keep asked for them
    history.csv              the training's curves

Nothing in it is pickled, so loading runs no code.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from components.artifacts import old_runs
from components.config import Strict, parse
from components.data.info import DataInfo
from components.errors import InputError, SamplerError
from components.families import family_class
from components.families.base import Family
from components.files import whole_folder, write_json, write_whole
from components.training import ema
from components.training.loop import State

CONFIG = "config.json"
HISTORY = "history.csv"
AVERAGES = "averages.safetensors"
BEST = "best.safetensors"


class Provenance(Strict):
    """Where a model came from: content hashes of its input data and of the code that trained it, its job's hash, and
    what `training.precision: auto` was, where it is known. `inputs`: by role, where each trained run that it learned
    from lay, and that run's hash."""

    data: str
    code: str
    job: str
    seed: int
    step: int
    precision: str | None = None
    inputs: dict[str, str] = {}


class RunConfig(Strict):
    schema_version: Literal[1] = 1
    family: str
    config: dict
    data: DataInfo
    provenance: Provenance


@dataclass(frozen=True)
class Run:
    """A loaded run folder: the family with its averaged weights, in evaluation mode, and its config.json."""

    family: Family
    config: RunConfig
    folder: Path


class Best(NamedTuple):
    """The averages of the checkpoint that was best by a figure."""

    step: int
    figure: str
    value: float
    average: ema.Average

    def as_bytes(self) -> bytes:
        """A safetensors file, the rest in its header."""
        tensors = {
            f"{net}/{key}": value.detach().cpu().contiguous()
            for net, weights in self.average.items()
            for key, value in weights.items()
        }
        head = {"step": str(self.step), "figure": self.figure, "value": repr(self.value)}
        return safetensors.torch.save(tensors, head)

    @classmethod
    def from_file(cls, path: Path) -> Best:
        """Raises SamplerError if the file is missing or damaged."""
        if not path.is_file():
            raise SamplerError(f"{path}: missing; a best checkpoint needs a training with training.keep: best")
        average: ema.Average = {}
        try:
            with safetensors.safe_open(path, "pt") as file:
                head = file.metadata()
                for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                    net, key = name.split("/", 1)
                    average.setdefault(net, {})[key] = file.get_tensor(name)
            return cls(int(head["step"]), head["figure"], float(head["value"]), average)
        except (SafetensorError, KeyError, ValueError) as error:
            raise SamplerError(f"{path}: not a run's best checkpoint ({error})") from None


def write(
    target: Path, name: str, family: Family, state: State, provenance: Provenance, best: Best | None = None
) -> None:
    """Writes a run folder, whole or not at all."""
    config = RunConfig(
        family=name, config=family.config.model_dump(mode="json"), data=family.data, provenance=provenance
    )
    with whole_folder(target) as folder:
        for net in family.kept:
            weights = {key: value.detach().cpu().contiguous() for key, value in _final(family, state, net).items()}
            safetensors.torch.save_file(weights, folder / f"{net}.safetensors")
        if state.snapshots:
            _write_averages(folder / AVERAGES, state.snapshots)
        if best is not None:
            (folder / BEST).write_bytes(best.as_bytes())
        write_json(folder / CONFIG, config.model_dump(mode="json"))
        write_whole(folder / HISTORY, as_csv(state.history))


def load_json(path: Path, expected: str) -> Any:
    """The content of a model's file. Raises SamplerError if it is missing or no JSON; `expected`: what its folder
    should be."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise SamplerError(f"{path}: missing; expected {expected}") from None
    except ValueError as error:
        raise SamplerError(f"{path}: not valid JSON ({error})") from None


def read_config(folder: Path) -> RunConfig:
    """Raises SamplerError if the folder is no run folder."""
    path = folder / CONFIG
    content = load_json(path, "a run folder as `train` writes it")
    try:
        config = parse(RunConfig, content, str(path))
    except InputError as error:
        raise SamplerError(str(error)) from None
    return old_runs.upgraded_info(config)


def _write_averages(path: Path, snapshots: list[dict]) -> None:
    """Each tensor as `number/net/name`; what number is which step and width stands in the file's header."""
    tensors = {
        f"{number}/{net}/{key}": value.cpu().contiguous()
        for number, snapshot in enumerate(snapshots)
        for net, weights in snapshot["nets"].items()
        for key, value in weights.items()
    }
    heads = [{"step": snapshot["step"], "sigma_rel": snapshot["sigma_rel"]} for snapshot in snapshots]
    safetensors.torch.save_file(tensors, path, metadata={"snapshots": json.dumps(heads)})


def read_averages(folder: Path) -> list[dict]:
    """The snapshots of a run's averages, as ema.reconstruct takes them. Raises SamplerError if it kept none."""
    path = folder / AVERAGES
    if not path.is_file():
        raise SamplerError(f"{path}: missing; other averages need a training with training.ema_snapshots above 0")
    try:
        with safetensors.safe_open(path, "pt") as file:
            snapshots = [{**head, "nets": {}} for head in json.loads(file.metadata()["snapshots"])]
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                number, net, key = name.split("/", 2)
                net = old_runs.NETS.get(net, net)
                snapshots[int(number)]["nets"].setdefault(net, {})[key] = file.get_tensor(name)
    except (SafetensorError, KeyError, ValueError) as error:
        raise SamplerError(f"{path}: not a run's averages ({error})") from None
    for snapshot in snapshots:
        snapshot["nets"] = {net: old_runs.renamed(weights) for net, weights in snapshot["nets"].items()}
    return snapshots


def _final(family: Family, state: State, net: str) -> dict[str, Tensor]:
    """The weights that a kept net has when training has ended."""
    if net in family.pretrained or state.step == 0:  # of no steps: those that it began with
        return family.nets[net].state_dict()
    if net in family.early:
        early = family.early[net]
        return ema.earlier(state.snapshots, state.step, early.at, early.sigma_rel)[early.net]
    return state.average[net]


def load(
    folder: Path,
    device: torch.device | str = "cpu",
    ema_sigma_rel: float | None = None,
    checkpoint: Literal["last", "best"] | None = None,
) -> Run:
    """`ema_sigma_rel` asks for weights averaged over another length than the run's own, built from its snapshots,
    `checkpoint: best` for those of the best checkpoint that it kept; unless told, the family knows (`prefers_best`).

    Raises SamplerError naming the file that is missing, damaged or of another shape."""
    config = read_config(folder)
    try:
        kind = family_class(config.family)
        family = kind(parse(kind.Config, config.config, "config"), config.data)
    except InputError as error:
        raise SamplerError(f"{folder / CONFIG}: {error}") from None
    for net in family.kept:
        load_weights(family.nets[net], folder / f"{net}.safetensors")
    if ema_sigma_rel is not None:
        _take(family, ema.reconstruct(read_averages(folder), ema_sigma_rel, config.provenance.step))
    if checkpoint is None and kind.prefers_best and ema_sigma_rel is None and (folder / BEST).is_file():
        checkpoint = "best"
    if checkpoint == "best":
        _take(family, Best.from_file(folder / BEST).average)
    family.nets.requires_grad_(False).eval().to(device)
    return Run(family, config, folder)


def _take(family: Family, average: ema.Average) -> None:
    for net, weights in average.items():
        family.nets[net].load_state_dict(weights)


def load_weights(net: torch.nn.Module, path: Path) -> None:
    """Raises SamplerError if the file is missing, damaged, or holds another network's weights."""
    path = old_runs.weights_file(path)
    if not path.is_file():
        raise SamplerError(f"{path}: missing; expected the weights that `train` writes")
    try:
        net.load_state_dict(old_runs.renamed(safetensors.torch.load_file(path)))
    except (SafetensorError, RuntimeError) as error:
        raise SamplerError(f"{path}: not this network's weights ({' '.join(str(error).split())[:200]})") from None


def as_csv(history: list[dict[str, float]]) -> str:
    """Curves as a table, one row a report; a figure that a report lacks is left empty."""
    names = list(dict.fromkeys(name for row in history for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return buffer.getvalue()


def read_history(folder: Path) -> list[dict[str, float]]:
    """The curves of a run, one mapping a report."""
    with (folder / HISTORY).open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
