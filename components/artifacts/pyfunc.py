"""A registered sampler as MLflow's pyfunc loads it: this package is shipped beside the weights, so neither the project
nor its cluster code needs to be installed where `models:/NAME@champion` is loaded.

The folder holds `sampler/`, a run folder, and `candidate.json`, whose `settings` are the ones that were promoted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.artifacts import run_folder
from components.config import from_paths, overlaid, parse
from components.evaluation.generation import sampler_of
from components.sampling.requests import Conditions, Request

SAMPLER, CANDIDATE = "sampler", "candidate.json"
_BATCH = 64  # rows sampled at once


class RegisteredSampler:
    """`predict` takes rows of `seed` and, where the sampler is conditional, `label`, a class number, or where it takes
    texts, `prompt`; `params` change settings for the call. Returns the medium's arrays: images are (N, H, W, C)
    uint8."""

    def __init__(self, folder: Path):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._run = run_folder.load(folder / SAMPLER, device)
        self._settings = json.loads((folder / CANDIDATE).read_text())["settings"]

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """`model_input` is a DataFrame or a mapping of columns. Raises SamplerError, an InputError, of what the
        sampler does not take, as a label that is no class."""
        chosen = {name: _plain(value) for name, value in (params or {}).items() if value is not None}
        sampler = sampler_of(self._run)
        settings = parse(sampler.Settings, overlaid(self._settings, from_paths(chosen)), "params")
        seeds = torch.tensor(np.array(model_input["seed"], dtype=np.int64))
        given = {}
        if "label" in sampler.accepts and "label" in model_input:
            given["label"] = torch.tensor(np.array(model_input["label"], dtype=np.int64))
        if "prompt" in sampler.accepts and "prompt" in model_input:
            given["prompt"] = tuple(str(prompt) for prompt in model_input["prompt"])
        request = Request(seeds, settings, Conditions(**given))
        parts = [sampler.sample(part) for part in request.split(_BATCH)]
        return sampler.medium.arrays(torch.cat(parts))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value  # MLflow's form of a list


def _load_pyfunc(path: str) -> RegisteredSampler:
    """MLflow's entry point of a `loader_module`."""
    return RegisteredSampler(Path(path))
