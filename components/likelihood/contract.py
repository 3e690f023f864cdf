"""The likelihood that a model promises, and its bits per dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.data.randomness import Draws
from components.metrics.figures import Figures, named
from components.metrics.likelihood import (
    BITS_GAP,
    BITS_PER_DIM,
    BITS_PER_DIM_TRAIN,
    LOG_2,
    bits_per_dim_figure,
    gap_figure,
)

_BATCH = 100  # rows at once


@dataclass(frozen=True)
class Likelihood:
    """A model's likelihood of stored rows.

    kind:             `exact`, a lower `bound` of the log-likelihood, or an `estimate` without a sign
    dequantisation:   `none` where stored values have probabilities; `uniform` where a density is integrated over the
                      values' bins by one draw a row, a bound of its own (Theis et al. 2016, section 3.1)
    log_probability:  rows (B, C, ...) in [-1, 1], labels (B,) or None, draws -> log-probabilities (B,) in nats of the
                      stored values, summed over a row
    """

    kind: Literal["exact", "bound", "estimate"]
    dequantisation: Literal["none", "uniform"]
    log_probability: Callable[[Tensor, Tensor | None, Draws], Tensor]


@torch.inference_mode()
def bits_figures(likelihood: Likelihood, held_out: Rows, train: Rows) -> Figures:
    """bits_per_dim of held-out rows and of training rows with 95% intervals, and the gap between."""
    bits, train_bits = (_bits(likelihood, *rows) for rows in (held_out, train))
    return named(
        bits_per_dim_figure(BITS_PER_DIM, bits),
        bits_per_dim_figure(BITS_PER_DIM_TRAIN, train_bits),
        gap_figure(BITS_GAP, bits, train_bits),
    )


Rows = tuple[Tensor, Tensor | None]  # (N, C, ...) in [-1, 1] and labels (N,), on the device of the nets


def _bits(likelihood: Likelihood, rows: Tensor, label: Tensor | None) -> Tensor:
    """(N,) float64 bits per dimension of each row."""
    draws = Draws.of_seeds(torch.arange(len(rows), device=rows.device)).fold("likelihood")
    found = []
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        chosen = None if label is None else label[part]
        found.append(likelihood.log_probability(rows[part], chosen, Draws(draws.keys[part])).double().cpu())
    return -torch.cat(found) / (rows[0].numel() * LOG_2)
