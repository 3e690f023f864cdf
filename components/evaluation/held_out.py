"""Held-out losses of a training's checkpoints: which rows, how many, under which noise.

Rows and noise are the same at every checkpoint, so that a curve over the training moves with the weights alone. Nothing
here touches what is trained: it reads a copy of the family, and draws by keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from components.data.dataset import Dataset, spread
from components.data.randomness import Draws
from components.families.base import Family
from components.metrics.figures import Figures
from components.training.loop import TrainingConfig
from components.training.precision import Precision, autocast, chosen

SHARE = 0.03  # of a training's evaluations of its net, over all checkpoints
BACKWARD = 2  # evaluations that a backward pass costs (Kaplan et al. 2020, section 2.1)
MOST, LEAST = 512, 16  # rows of either set
_AT_ONCE, _VALUES = 128, 2**16  # rows, and values of them: what a net computes of clips or films is many times larger


def evaluations(rows: int, levels: int, config: TrainingConfig) -> int:
    """How often a training's checkpoints ask the net about a row: either set, live and averaged weights."""
    return 4 * rows * levels * math.ceil(config.steps / config.save_every)


def num_rows(levels: int, config: TrainingConfig) -> int:
    """Rows of either set: as many as stay within SHARE of the training, at most MOST, never under LEAST."""
    trained = config.steps * config.batch_size * (1 + BACKWARD)
    return max(LEAST, min(MOST, int(SHARE * trained / evaluations(1, levels, config))))


class HeldOutRows:
    """Rows of a training set and as many held-out ones, as a family trains on them."""

    def __init__(self, family: Family, train: Dataset, held_out: Dataset, config: TrainingConfig):
        """The family must be in evaluation mode: it may encode rows."""
        device = next(family.nets.parameters()).device
        count = min(num_rows(family.held_out.levels, config), len(train), len(held_out))
        self._config = config
        self._draws = Draws.of_seeds(torch.arange(count)).fold("held out").to(device)
        self._train = _placed(spread(train, count), device)
        with torch.inference_mode():
            self._held_out = _training_columns(family, _placed(spread(held_out, count), device))

    def __len__(self) -> int:
        return len(self._draws.keys)

    def figures(self, family: Family, live: bool, automatic: Precision = "float32") -> Figures:
        """Of the weights that the family holds; `automatic`: what `precision: auto` is in their run."""
        held_out, train = (self._losses(family, rows, automatic) for rows in (self._held_out, self._train))
        return family.held_out.figures(held_out, train, live)

    @torch.inference_mode()
    def _losses(self, family: Family, columns: dict[str, Tensor], automatic: Precision = "float32") -> Tensor:
        trained = chosen(self._config.precision, automatic, family.phases[0].low_precision)
        precision = trained if family.held_out.low_precision else "float32"
        found = []
        for part in _parts(len(self), family.data.shape):
            rows = {name: values[part] for name, values in columns.items()}
            with autocast(self._draws.keys.device.type, precision):
                found.append(family.held_out_losses(rows, Draws(self._draws.keys[part])).double().cpu())
        return torch.cat(found)


def _parts(count: int, shape: Sequence[int]) -> list[slice]:
    """Rows of a shape, so many at once as a net may hold what it computes of them."""
    at_once = max(1, min(_AT_ONCE, _VALUES // math.prod(shape)))
    return [slice(start, start + at_once) for start in range(0, count, at_once)]


def _training_columns(family: Family, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of rows as they are decoded, made a few at a time: the family may encode them."""
    parts = _parts(len(next(iter(rows.values()))), family.data.decoded.shape)
    found = [family.training_columns({name: values[part] for name, values in rows.items()}) for part in parts]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _placed(columns: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in columns.items()}
