"""Exponential moving averages of weights, by a power function of training time (Karras et al. 2024, section 3).

The averaging length is a fixed share of the run so far, so one setting suits every run length and needs no warm-up.
From snapshots of two such averages any other length can be had after training (section 3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

Average = dict[str, dict[str, Tensor]]  # a net's state by the net's name

TRACES = (0.05, 0.10)  # the widths that snapshots are taken of (Karras et al. 2024, section 3.2)


@functools.cache
def power_gamma(sigma_rel: float) -> float:
    """The exponent whose average has relative width `sigma_rel` (Karras et al. 2024, equation 126)."""
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def decay(gamma: float, step: int) -> float:
    """The weight of the past at `step` (from 0); the first step takes the weights as they are (equation 127)."""
    return (1 - 1 / (step + 1)) ** (gamma + 1)


def copy_of(nets: Mapping[str, nn.Module]) -> Average:
    """The state of each net, detached and copied: the start of an average."""
    return {name: copy_of_state(net.state_dict()) for name, net in nets.items()}


def copy_of_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}


@torch.no_grad()
def update(average: Average, nets: Mapping[str, nn.Module], keep: float) -> None:
    """average <- keep * average + (1 - keep) * weights, in place; what is not floating point is copied."""
    for name, net in nets.items():
        state = net.state_dict()
        floats = [key for key, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([average[name][key] for key in floats], [state[key] for key in floats], 1 - keep)
        for key in state.keys() - set(floats):
            average[name][key].copy_(state[key])


def profiles_product(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The inner product of two averages' profiles, elementwise.

    An average of exponent gamma at time t weighs the weights of time s by (gamma + 1) s^gamma / t^(gamma + 1) for
    s <= t; the product of two such is a power of s, integrated up to the earlier time (Karras et al. 2024, appendix
    C.2).
    """
    earlier = np.minimum(t_a, t_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    # the powers of large times in logarithms: t^(gamma_a + gamma_b) overflows
    powers = (gamma_a + gamma_b + 1) * np.log(earlier) - (gamma_a + 1) * np.log(t_a) - (gamma_b + 1) * np.log(t_b)
    return scale * np.exp(powers)


def combination(times: Sequence[int], gammas: Sequence[float], time: int, gamma: float) -> np.ndarray:
    """(N,) factors that make of N stored averages the best approximation, by least squares over profiles, of the
    average with `gamma` at `time` (Karras et al. 2024, equation 5)."""
    t, g = np.asarray(times, float), np.asarray(gammas, float)
    among = profiles_product(t[:, None], g[:, None], t[None, :], g[None, :])
    wanted = profiles_product(t, g, np.float64(time), np.float64(gamma))
    return np.linalg.lstsq(among, wanted, rcond=1e-12)[0]


@torch.no_grad()
def reconstruct(snapshots: Sequence[Mapping], sigma_rel: float, step: int) -> Average:
    """The average of width `sigma_rel` after `step` steps, from snapshots as the training loop takes them: mappings of
    `step`, `sigma_rel` and `nets`. What is not floating point comes from the last. Raises ValueError without any."""
    if not snapshots:
        raise ValueError("no snapshots of the average were kept; train with training.ema_snapshots above 0")
    gammas = [power_gamma(snapshot["sigma_rel"]) for snapshot in snapshots]
    factors = combination([snapshot["step"] for snapshot in snapshots], gammas, step, power_gamma(sigma_rel))
    return {
        name: {key: _combined([snapshot["nets"][name][key] for snapshot in snapshots], factors) for key in state}
        for name, state in snapshots[-1]["nets"].items()
    }


def earlier(snapshots: Sequence[Mapping], step: int, share: float, sigma_rel: float) -> Average:
    """The average of width `sigma_rel` at the first snapshot from `share` of a run of `step` steps on, from what was
    kept until then. Raises ValueError without any."""
    at = min((snapshot["step"] for snapshot in snapshots if snapshot["step"] >= share * step), default=step)
    return reconstruct([snapshot for snapshot in snapshots if snapshot["step"] <= at], sigma_rel, at)


def _combined(values: Sequence[Tensor], factors: np.ndarray) -> Tensor:
    if not values[-1].is_floating_point():
        return values[-1].clone()
    total = sum(factor * value.double() for factor, value in zip(factors.tolist(), values, strict=True))
    return total.to(values[-1].dtype)
