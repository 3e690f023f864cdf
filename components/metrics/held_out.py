"""Held-out loss: a model's own loss on rows that it is not trained on, beside that on as many rows that it is.

Their difference, the gap, is over-fitting: it opens long before samples become copies of training rows, and one number
per noise level says where.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.metrics import intervals
from components.metrics.figures import Definition, Figure, Figures, definitions, named

LIVE = "live_"  # before the names of figures of the weights that are trained, not of their average


@dataclass(frozen=True)
class HeldOutLoss:
    """What a family's losses of rows are. `name` ends the figures' names; `levels`: losses a row, one a noise level;
    `low_precision`: whether they may be computed in the precision of the training."""

    name: str
    label: str
    kind: Literal["distance", "likelihood"]
    unit: str = ""
    levels: int = 1
    low_precision: bool = False

    @property
    def held_out(self) -> str:
        """The name of the mean over held-out rows and levels."""
        return f"held_out_{self.name}"

    @property
    def training(self) -> str:
        return f"training_{self.name}"

    @property
    def gap(self) -> str:
        """The name of what is held out less what is trained on."""
        return f"{self.name}_gap"

    @property
    def gap_stderr(self) -> str:
        return f"{self.name}_gap_stderr"

    @property
    def definitions(self) -> tuple[Definition, ...]:
        """Of all figures, of averaged and of live weights."""
        nothing = torch.zeros(2, self.levels)
        figures = (self.figures(nothing, nothing, live) for live in (False, True))
        return tuple(definitions(figures).values())

    def figures(self, held_out: Tensor, training: Tensor, live: bool = False) -> Figures:
        """The means, their gap and its standard error, and the means by level. `held_out`, `training`: (N, L) losses of
        as many rows, row i of both under equal noise; `live`: of the weights that are trained, not of their average."""
        held_out, training = held_out.double(), training.double()
        rows, error = (held_out - training).mean(1), 0.0
        if len(rows) > 1:
            error = float(rows.std()) / math.sqrt(len(rows))  # of pairs: noise that both share counts once
        by_level = [
            self._defined(f"{name}_{level}", f"{where}, noise level {level} of {self.levels}", live).figure(value)
            for name, where, losses in (
                (self.held_out, "held-out rows", held_out),
                (self.training, "training rows", training),
            )
            for level, value in enumerate(losses.mean(0).tolist(), 1)
            if self.levels > 1
        ]
        gap = float(rows.mean())
        return named(
            self._mean(self.held_out, "held-out rows", held_out, live),
            self._mean(self.training, "as many training rows", training, live),
            self._defined(self.gap, "held-out rows less training rows", live).figure(gap, intervals.normal(gap, error)),
            self._defined(self.gap_stderr, "standard error of the gap", live, better=None).figure(error),
            *by_level,
        )

    def _mean(self, name: str, where: str, losses: Tensor, live: bool) -> Figure:
        rows = losses.mean(1)
        value = float(rows.mean())
        interval = intervals.normal(value, float(rows.std()) / math.sqrt(len(rows))) if len(rows) > 1 else None
        return self._defined(name, where, live).figure(value, interval)

    def _defined(self, name: str, where: str, live: bool, better: Literal["lower"] | None = "lower") -> Definition:
        weights = "the weights of the moment" if live else "averaged weights"
        return Definition(
            name=f"{LIVE if live else ''}{name}",
            label=f"{self.label}, {where}",
            explanation=f"by {weights}, on fixed rows and fixed noise",
            kind=self.kind,
            better=better,
            unit=self.unit,
        )


NUM_LEVELS = 8
DENOISING = HeldOutLoss("loss", "denoising loss", "distance", levels=NUM_LEVELS, low_precision=True)
BITS = HeldOutLoss("bits", "bits per dimension", "likelihood", "bits/dim")
