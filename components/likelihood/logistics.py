"""Discretised mixtures of logistics: the probability of a pixel's stored value is the mass of its bin (Salimans et al.
2017, sections 2.1 and 2.2). A channel's means depend linearly on the channels before it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from components.likelihood.dequantise import indices
from components.shapes import per_channel

LEAST_LOG_SCALE = -7.0  # for 256 levels; finer ones want less
_LEAST_MASS = 1e-5  # below it, the density at the bin's middle stands for the mass: released code of the paper


class Mixture(NamedTuple):
    """Of K logistics: `logits` (B, K, ...), `means` and `log_scales` (B, K, C, ...), `coefficients` (B, K,
    C (C - 1) / 2, ...) in (-1, 1), of channel 1 on 0, of 2 on 0 and on 1, and so on."""

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor


def num_outputs(channels: int, mixtures: int) -> int:
    """How many numbers a pixel's mixture is made of."""
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def mixture(numbers: Tensor, channels: int, mixtures: int, least: float = LEAST_LOG_SCALE) -> Mixture:
    """A mixture of a net's numbers (B, num_outputs, ...); `least`: of log-scales."""
    logits, rest = numbers.float().split([mixtures, numbers.shape[1] - mixtures], dim=1)
    rest = rest.unflatten(1, (mixtures, -1))
    means, log_scales, coefficients = rest.split([channels, channels, channels * (channels - 1) // 2], dim=2)
    return Mixture(logits, means, log_scales.clamp(min=least), coefficients.tanh())


def conditional_means(found: Mixture, values: Tensor) -> Tensor:
    """Means (B, K, C, ...) given the values (B, C, ...) of the channels before each."""
    means, place = [], 0
    for channel in range(found.means.shape[2]):
        mean = found.means[:, :, channel]
        for earlier in range(channel):
            mean = mean + found.coefficients[:, :, place] * values[:, None, earlier]
            place += 1
        means.append(mean)
    return torch.stack(means, 2)


def log_probability(numbers: Tensor, rows: Tensor, levels: int, mixtures: int) -> Tensor:
    """The log-probability of rows (B, C, H, W) in [-1, 1] of `levels` values, a row: (B,) in nats."""
    return log_probabilities(numbers, rows, levels, mixtures).flatten(1).double().sum(1)


def log_probabilities(
    numbers: Tensor, rows: Tensor, levels: int, mixtures: int, least: float = LEAST_LOG_SCALE
) -> Tensor:
    """The same of each place of rows (B, C, ...), over its channels: (B, ...)."""
    found = mixture(numbers, rows.shape[1], mixtures, least)
    each = _log_masses(rows[:, None], conditional_means(found, rows), found.log_scales, levels)
    # over channels, then over the mixture
    return torch.logsumexp(each.sum(2) + found.logits.log_softmax(1), dim=1)


def logistic_log_probability(rows: Tensor, means: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """The same of one logistic a value: means (B, C, ...) and a log-scale a channel (C,) -> (B,) in nats."""
    scales = per_channel(log_scale.clamp(min=LEAST_LOG_SCALE), rows).expand_as(rows)
    return _log_masses(rows, means.float(), scales, levels).flatten(1).double().sum(1).float()


def _log_masses(rows: Tensor, means: Tensor, log_scales: Tensor, levels: int) -> Tensor:
    """The log-mass of each value's bin; the outermost bins reach to infinity."""
    centred, inverse, half = rows - means, (-log_scales).exp(), 1 / (levels - 1)
    upper, lower, middle = inverse * (centred + half), inverse * (centred - half), inverse * centred
    mass = upper.sigmoid() - lower.sigmoid()
    density = middle - log_scales - 2 * F.softplus(middle) + math.log(2 * half)
    inside = torch.where(mass > _LEAST_MASS, mass.clamp(min=1e-12).log(), density)
    edge = torch.where(rows < -1 + half, F.logsigmoid(upper), F.logsigmoid(-lower))
    return torch.where(rows.abs() > 1 - half, edge, inside)


def draw(
    numbers: Tensor,
    uniform: Tensor,
    levels: int,
    mixtures: int,
    temperature: float,
    least: float = LEAST_LOG_SCALE,
) -> Tensor:
    """A pixel a row, (B, C) in [-1, 1] on the grid of `levels` values. `numbers`: (B, num_outputs); `uniform`:
    (B, K + C) in (0, 1), the first to choose a logistic by, the others a value each. `temperature`: of the choice and
    of scales."""
    channels = uniform.shape[1] - mixtures
    found = mixture(numbers, channels, mixtures, least)
    gumbel = -(-uniform[:, :mixtures].log()).log()
    chosen = (found.logits + temperature * gumbel).argmax(1)
    picked = Mixture(*(part[torch.arange(len(part), device=part.device), chosen][:, None] for part in found))
    noise = temperature * uniform[:, mixtures:].logit()
    values = torch.zeros_like(noise)
    for channel in range(channels):
        mean = conditional_means(picked, values)[:, 0, channel]
        value = mean + picked.log_scales[:, 0, channel].exp() * noise[:, channel]
        value = indices(value.clamp(-1, 1), levels) * (2 / (levels - 1)) - 1
        values = torch.cat([values[:, :channel], value[:, None], values[:, channel + 1 :]], 1)
    return values


def draw_rows(numbers: Tensor, uniform: Tensor, levels: int, mixtures: int, temperature: float) -> Tensor:
    """Rows (B, C, H, W) whose pixels are drawn each by itself, as `draw` does. `numbers`: (B, num_outputs, H, W);
    `uniform`: (B, K + C, H, W) in (0, 1)."""
    places = [part.flatten(2).transpose(1, 2).flatten(0, 1) for part in (numbers, uniform)]  # a pixel a row
    drawn = draw(*places, levels, mixtures, temperature)
    return drawn.unflatten(0, (len(numbers), -1)).transpose(1, 2).unflatten(2, numbers.shape[2:])


@torch.no_grad()
def start_scales(bias: Tensor, channels: int, mixtures: int, log_scale: float = -2.0) -> None:
    """Sets what is added to a net's numbers (num_outputs,) so that log-scales begin about `log_scale` and not, much
    wider than pixels spread, about 0."""
    bias[mixtures:].view(mixtures, -1)[:, channels : 2 * channels] = log_scale
