"""Exponential moving averages of weights, by a power function of training time (Karras et al. 2024, section 3.1).

The averaging length is a fixed share of the run so far, so one setting suits every run length and needs no warm-up.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def power_gamma(sigma_rel: float) -> float:
    """The exponent whose average has relative width `sigma_rel` (Karras et al. 2024, equation 126)."""
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def decay(gamma: float, step: int) -> float:
    """The weight of the past at `step` (from 0); the first step takes the weights as they are (equation 127)."""
    return (1 - 1 / (step + 1)) ** (gamma + 1)


def copy_of(nets: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """The state of each net, detached and copied: the start of an average."""
    return {
        name: {key: value.detach().clone() for key, value in net.state_dict().items()} for name, net in nets.items()
    }


@torch.no_grad()
def update(average: dict[str, dict[str, Tensor]], nets: dict[str, nn.Module], keep: float) -> None:
    """average <- keep * average + (1 - keep) * weights, in place; what is not floating point is copied."""
    for name, net in nets.items():
        state = net.state_dict()
        floats = [key for key, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([average[name][key] for key in floats], [state[key] for key in floats], 1 - keep)
        for key in state.keys() - set(floats):
            average[name][key].copy_(state[key])
