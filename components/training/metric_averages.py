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


class MetricAverages:
    """Running means of figures, summed on the device so that no step waits for it."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], _Group] = {}

    def add(self, phase: str, figures: dict[str, Tensor], step: int) -> None:
        # in the same order on every worker, which a set of devices is not: workers add their figures by place
        for device in dict.fromkeys(value.device for value in figures.values()):
            here = {f"{phase}/{name}": value for name, value in figures.items() if value.device == device}
            self._groups.setdefault(tuple(here), _Group()).add(torch.stack(tuple(here.values())), step)

    def take(self) -> dict[str, float]:
        """The means since the last call. Raises NonFiniteError naming the first figure that was not finite."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        bad: dict[str, int] = {}
        for names, group in self._groups.items():
            for name, total, step in zip(names, group.sums.tolist(), group.first_bad.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + group.count
                if step >= 0:
                    bad[name] = min(step, bad.get(name, step))
        if bad:
            name = min(bad, key=bad.__getitem__)  # of several at one step the first told: the loss before its gradient
            raise NonFiniteError(name, sums[name], bad[name])
        self._groups = {}
        return {name: total / counts[name] for name, total in sums.items()}


class _Group:
    """Metrics logged by one call: `sums` (F,), and the first step at which each was not finite, or -1."""

    def __init__(self) -> None:
        self.sums: Tensor | float = 0.0
        self.first_bad: Tensor | None = None
        self.count = 0

    def add(self, values: Tensor, step: int) -> None:
        self.sums, self.count = self.sums + values, self.count + 1
        # a sum that just stopped being finite dates the fault without asking the device each step
        is_first = torch.isfinite(self.sums).logical_not_()
        if self.first_bad is None:
            self.first_bad = torch.full_like(is_first, -1, dtype=torch.int64)
        self.first_bad.masked_fill_(is_first & (self.first_bad < 0), step)
