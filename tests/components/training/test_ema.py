"""Weight averages by a power function of time, against Karras et al. 2024 and a closed form."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from components.training import ema


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.28])
def test_gamma_gives_the_relative_width(sigma_rel):
    """sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Karras et al. 2024, section 3.1)."""
    gamma = ema.power_gamma(sigma_rel)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(sigma_rel**2, rel=1e-6)


def test_gamma_is_the_published_one():
    """Karras et al. 2024, section 3.1: gamma = 6.94 for a width of 10%, 16.97 for 5%."""
    assert ema.power_gamma(0.10) == pytest.approx(6.94, abs=0.005)
    assert ema.power_gamma(0.05) == pytest.approx(16.97, abs=0.005)


@pytest.mark.parametrize("gamma", [0.0, 6.94, 16.97])
def test_average_is_the_weighted_sum(gamma):
    """Applied step by step, the decays give each step's weights a share of prod of the decays after it, which follows
    the profile t^gamma."""
    num_steps = 400
    decays = np.array([ema.decay(gamma, step) for step in range(num_steps)])
    shares = np.array([(1 - decays[step]) * decays[step + 1 :].prod() for step in range(num_steps)])
    assert shares.sum() == pytest.approx(1)
    values = np.random.default_rng(0).normal(size=num_steps)
    nets = {"net": nn.Linear(1, 1, bias=False)}
    average = ema.copy_of(nets)
    for step, value in enumerate(values):
        nn.init.constant_(nets["net"].weight, value)
        ema.update(average, nets, ema.decay(gamma, step))
    assert float(average["net"]["weight"]) == pytest.approx((shares * values).sum(), abs=1e-5)
    profile = (np.arange(num_steps) + 0.5) ** gamma
    assert np.abs(shares - profile / profile.sum()).max() < 0.05 * shares.max()


def test_width_of_the_average_is_the_asked_share_of_the_run():
    num_steps, sigma_rel = 4000, 0.1
    decays = np.array([ema.decay(ema.power_gamma(sigma_rel), step) for step in range(num_steps)])
    shares = (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1)
    t = (np.arange(num_steps) + 1) / num_steps
    assert np.sqrt((shares * t**2).sum() - (shares * t).sum() ** 2) == pytest.approx(sigma_rel, rel=0.01)


def test_first_step_takes_the_weights_as_they_are():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = ema.copy_of({"net": net})
    before = copy.deepcopy(average)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.add_(1)
    assert all(torch.equal(average["net"][key], before["net"][key]) for key in before["net"]), "a copy, not a view"
    ema.update(average, {"net": net}, ema.decay(6.94, 0))
    for key, value in net.state_dict().items():
        assert torch.allclose(average["net"][key], value, atol=1e-6), key


def test_counters_are_copied_not_averaged():
    net = nn.BatchNorm2d(2)
    average = ema.copy_of({"net": net})
    net(torch.randn(4, 2, 3, 3))
    ema.update(average, {"net": net}, 0.9)
    assert int(average["net"]["num_batches_tracked"]) == 1
    assert torch.allclose(average["net"]["running_mean"], 0.1 * net.running_mean)
