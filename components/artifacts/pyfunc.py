"""A registered sampler as MLflow's pyfunc loads it: this package is shipped beside the weights, so neither the project
nor its cluster code needs to be installed where `models:/NAME@champion` is loaded.

The folder holds `sampler/`, a run folder, and `candidate.json`, whose `settings` are the ones that were promoted.
"""

from __future__ import annotations

import json
import numbers
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.artifacts import run_folder
from components.config import from_paths, overlaid, parse
from components.errors import InputError
from components.evaluation.generation import sampler_of
from components.families.base import Sampler
from components.sampling.requests import Conditions, Request

SAMPLER, CANDIDATE = "sampler", "candidate.json"
_BATCH = 64  # rows sampled at once


class RegisteredSampler:
    """`predict` takes rows of `seed` and, where they steer the sampler, `label` and `speaker`, numbers, or `prompt`, a
    text; one that is missing, as None or NaN, is a row without. `params` change settings for the call; an empty list
    turns one off that has several values. Returns the medium's arrays: images are (N, H, W, C) uint8."""

    def __init__(self, folder: Path):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._run = run_folder.load(folder / SAMPLER, device)
        self._settings = json.loads((folder / CANDIDATE).read_text())["settings"]

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """`model_input` is a DataFrame or a mapping of columns. Raises InputError of columns and params that cannot be
        used, SamplerError of what the sampler does not take, as a label that is no class."""
        sampler = sampler_of(self._run)
        settings = parse(sampler.Settings, overlaid(self._settings, from_paths(_chosen(params))), "params")
        seeds = _integers(model_input, "seed")
        if not seeds or None in seeds:
            raise InputError("seed: expected a row or more, each with a whole number")
        given = {name: read(model_input, name) for name, read in _OPTIONAL.items() if name in sampler.accepts}
        alike: dict[tuple[str, ...], list[int]] = {}  # rows by what they are given
        for row in range(len(seeds)):
            names = tuple(name for name, column in given.items() if column and column[row] is not None)
            alike.setdefault(names, []).append(row)
        images: list[np.ndarray | None] = [None] * len(seeds)
        for names, rows in alike.items():
            columns = {name: [given[name][row] for row in rows] for name in names}
            made = _sampled(sampler, [seeds[row] for row in rows], settings, columns)
            for row, image in zip(rows, made, strict=True):
                images[row] = image
        return np.stack(images)


def _sampled(sampler: Sampler, seeds: list[int], settings: Any, columns: dict[str, list]) -> np.ndarray:
    conditions = {}
    for name in ("label", "speaker"):
        if name in columns:
            conditions[name] = torch.tensor(columns[name])
    if "prompt" in columns:
        conditions["prompt"] = tuple(columns["prompt"])
    request = Request(torch.tensor(seeds), settings, Conditions(**conditions))
    return sampler.medium.arrays(torch.cat([sampler.sample(part) for part in request.split(_BATCH)]))


def _chosen(params: dict[str, Any] | None) -> dict[str, Any]:
    """What a call changes; None, which MLflow hands on for what is not set, changes nothing."""
    values = {name: value for name, value in (params or {}).items() if value is not None}
    # MLflow's form of a list, and of one that is off
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
    return {name: None if value == [] else value for name, value in plain.items()}


def _integers(table: Any, name: str) -> list[int | None]:
    """A column of whole numbers, None where one is missing; empty where there is no such column. A number may come as a
    float, as pandas keeps those of a column with gaps."""
    found = _column(table, name)
    for row, value in enumerate(found):
        if value is not None and not (isinstance(value, numbers.Real) and value == int(value)):
            raise InputError(f"{name}: row {row}: expected a whole number, found {value!r}")
    return [None if value is None else int(value) for value in found]


def _texts(table: Any, name: str) -> list[str | None]:
    return [None if value is None else str(value) for value in _column(table, name)]


def _column(table: Any, name: str) -> list:
    if name not in table:
        return []
    values = table[name]
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    # not equal to itself: NaN, pandas' NaT; its NA is equal to nothing and says so by a name of its own
    return [None if type(value).__name__ == "NAType" or value != value else value for value in values]


_OPTIONAL = {"label": _integers, "speaker": _integers, "prompt": _texts}


def _load_pyfunc(path: str) -> RegisteredSampler:
    """MLflow's entry point of a `loader_module`."""
    return RegisteredSampler(Path(path))
