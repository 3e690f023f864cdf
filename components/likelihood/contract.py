"""The likelihood that a model promises, and its bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.data.randomness import Draws
from components.metrics.figures import Figures, named
from components.metrics.likelihood import OF_LATENTS, OF_TOKENS, OF_VALUES, bits_per_dim_figure, gap_figure

_BATCH = 100  # rows at once


@dataclass(frozen=True)
class Likelihood:
    """A model's likelihood of stored rows.

    kind:             `exact`, a lower `bound` of the log-likelihood, or an `estimate` without a sign
    dequantisation:   `none` where stored values have probabilities; `uniform` where a density is integrated over the
                      values' bins by one draw a row, a bound of its own (Theis et al. 2016, section 3.1)
    log_probability:  rows (B, C, ...) in [-1, 1], labels (B,), with speakers (B, 2), or None, draws ->
                      log-probabilities (B,) in nats of the stored values, summed over a row
    tokens:           how many a row has, where it is their likelihood and not the values': what is lost on the way to
                      tokens counts for nothing, so that it says no bits per dimension
    latents:          how many numbers a row's latent has, where it is the density of latents: of continuous numbers,
                      which says bits a latent's number and none of pixels
    num_values:       how many values each of some rows has, (B,), where it is not all; the others have probability 1
    most_rows:        what is affordable to measure, where a row takes many evaluations of the net
    """

    kind: Literal["exact", "bound", "estimate"]
    dequantisation: Literal["none", "uniform"]
    log_probability: Callable[[Tensor, Tensor | None, Draws], Tensor]
    tokens: int = 0
    latents: int = 0
    num_values: Callable[[Tensor], Tensor] | None = None
    most_rows: int | None = None

    def values_of(self, rows: Tensor) -> int | Tensor:
        """How many values, tokens or latents of each row its bits are spread over."""
        return self.tokens or self.latents or (rows[0].numel() if self.num_values is None else self.num_values(rows))


def bits_per_value(nats: Tensor, num_values: int | Tensor) -> Tensor:
    """Log-probabilities of rows in nats, of any shape, as the negative log2-probability of each of a row's values."""
    return -nats / (num_values * math.log(2))


@torch.inference_mode()
def bits_figures(likelihood: Likelihood, held_out: Rows, train: Rows) -> Figures:
    """bits_per_dim, bits_per_token or bits_per_latent of held-out rows and of training rows with 95% intervals, and the
    gap between."""
    bits, train_bits = (_bits(likelihood, *rows) for rows in (held_out, train))
    found, trained, gap = OF_TOKENS if likelihood.tokens else OF_LATENTS if likelihood.latents else OF_VALUES
    return named(
        bits_per_dim_figure(found, bits),
        bits_per_dim_figure(trained, train_bits),
        gap_figure(gap, bits, train_bits),
    )


Rows = tuple[Tensor, Tensor | None]  # (N, C, ...) in [-1, 1] and labels (N,), on the device of the nets


def _bits(likelihood: Likelihood, rows: Tensor, label: Tensor | None) -> Tensor:
    """(N,) float64 bits per dimension, or per token, of each row."""
    draws = Draws.of_seeds(torch.arange(len(rows), device=rows.device)).fold("likelihood")
    found = []
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        chosen = None if label is None else label[part]
        found.append(likelihood.log_probability(rows[part], chosen, Draws(draws.keys[part])).double().cpu())
    counts = likelihood.values_of(rows)
    return bits_per_value(torch.cat(found), counts.cpu() if isinstance(counts, Tensor) else counts)
