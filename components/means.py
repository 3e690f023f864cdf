"""Means of figures between two reports, and the refusal of figures that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from components.errors import TrainingError


class NonFiniteError(TrainingError):
    """A loss or gradient became infinite or not a number; training stops before such weights are saved.

    `step` is the one whose global batch caused it."""

    def __init__(self, figure: str, value: float, step: int):
        super().__init__(
            f"{figure} became {value} at step {step}, on global batch {step}; lower its learning rate, set "
            "training.clip_norm, or leave such updates out with training.on_nonfinite: skip"
        )
        self.step = step


class Means:
    """Running means of figures, summed on the device so that no step waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._first_bad: dict[str, Tensor] = {}  # the first step whose figure was not finite, or -1

    def add(self, phase: str, figures: dict[str, Tensor], step: int) -> None:
        for name, value in figures.items():
            key = f"{phase}/{name}"
            if key not in self._sums:
                self._sums[key], self._counts[key] = torch.zeros_like(value), 0
                self._first_bad[key] = torch.full((), -1, device=value.device)
            # a sum that just stopped being finite dates the fault without asking the device each step
            self._sums[key] = self._sums[key] + value
            self._counts[key] += 1
            is_first = (self._first_bad[key] < 0) & ~torch.isfinite(self._sums[key])
            self._first_bad[key] = torch.where(is_first, step, self._first_bad[key])

    def take(self) -> dict[str, float]:
        """The means since the last call. Raises NonFiniteError naming the first figure that was not finite."""
        bad = {key: int(step) for key, step in self._first_bad.items() if step >= 0}
        if bad:
            key = min(bad, key=bad.__getitem__)  # of several at one step the first told: the loss before its gradient
            raise NonFiniteError(key, float(self._sums[key]), bad[key])
        means = {key: float(total) / self._counts[key] for key, total in self._sums.items()}
        self._sums, self._counts, self._first_bad = {}, {}, {}
        return means
