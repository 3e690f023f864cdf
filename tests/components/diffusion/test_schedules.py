"""Schedules: inverse functions, diffusers' tables, published closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError

from components.diffusion.schedules import (
    BETAS,
    NUM_TRAIN_TIMESTEPS,
    TIMES,
    ScheduleConfig,
    build,
    karras_sigmas,
    rescaled_to_zero_snr,
    spaced_sigmas,
)

CONFIGS = [
    ScheduleConfig(name="flow"),
    ScheduleConfig(name="flow", shift=3.0),
    ScheduleConfig(name="linear"),
    ScheduleConfig(name="scaled_linear"),
    ScheduleConfig(name="cosine"),
    *(ScheduleConfig(name=name, zero_terminal_snr=True) for name in BETAS),
]
IDS = [f"{config.name}-{config.shift}-{config.zero_terminal_snr}" for config in CONFIGS]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_sigma_and_time_are_inverse(config):
    schedule = build(config)
    times = torch.linspace(0, 1, 777, dtype=torch.float64)[1:]
    sigmas = schedule.sigma(times)
    assert (sigmas.diff() > 0).all()
    assert torch.allclose(schedule.time(sigmas), times, atol=1e-9)
    between = torch.logspace(*sigmas[[0, -1]].log10().tolist(), 50, dtype=torch.float64)
    assert torch.allclose(schedule.sigma(schedule.time(between)), between, rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_levels_outside_get_the_nearest_time(config):
    times = build(config).time(torch.tensor([1e-9, 1e9]))
    assert torch.allclose(times, torch.tensor([0.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_levels_of_a_solver_fall_to_zero(config):
    for num_steps in (1, 2, 30, 1000):
        sigmas = build(config).sigmas(num_steps)
        assert len(sigmas) == num_steps + 1
        assert sigmas[0] == pytest.approx(float(build(config).sigma(torch.tensor(1.0, dtype=torch.float64))))
        assert sigmas[-1] == 0
        assert all(before > after for before, after in itertools.pairwise(sigmas))


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("levels", TIMES)
@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_levels_fall_wherever_steps_are_placed(config, levels, offset, karras):
    schedule = build(config.model_copy(update={"levels": levels, "offset": offset, "karras": karras}))
    for num_steps, start in ((1, 1.0), (2, 1.0), (4, 1.0), (1000, 1.0), (1, 0.1), (30, 0.6)):
        sigmas = schedule.sigmas(num_steps, start)
        assert 2 <= len(sigmas) <= num_steps + 1 and sigmas[-1] == 0
        assert all(before > after for before, after in itertools.pairwise(sigmas))


def test_levels_of_a_flow_leave_out_the_time_without_noise():
    sigmas = {levels: build(ScheduleConfig(levels=levels)).sigmas for levels in TIMES}
    assert sigmas["linspace"](5) == sigmas["trailing"](4)
    assert len(sigmas["leading"](4)) == 4, "the places 750, 500, 250 and the end"
    assert sigmas["leading"](1) == sigmas["trailing"](1)
    assert len(build(ScheduleConfig(name="linear", levels="inner")).sigmas(1000)) == 1000, "999 places above the first"


DIFFUSERS = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


@pytest.mark.parametrize("name", BETAS)
def test_table_is_that_of_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, **DIFFUSERS[name]).alphas_cumprod.double()
    times = torch.arange(NUM_TRAIN_TIMESTEPS, dtype=torch.float64) / (NUM_TRAIN_TIMESTEPS - 1)
    alpha_bar = 1 / (1 + build(ScheduleConfig(name=name)).sigma(times) ** 2)
    assert torch.allclose(alpha_bar, theirs, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("name", BETAS)
def test_zero_terminal_snr_is_that_of_diffusers(name):
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    betas = BETAS[name]()
    theirs = (1 - ddim.rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = rescaled_to_zero_snr((1 - betas).cumprod(0))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12)
    assert ours[-1] == 0
    schedule = build(ScheduleConfig(name=name, zero_terminal_snr=True))
    times = torch.arange(NUM_TRAIN_TIMESTEPS, dtype=torch.float64) / (NUM_TRAIN_TIMESTEPS - 1)
    sigmas = schedule.sigma(times)
    assert torch.allclose(1 / (1 + sigmas[:-1] ** 2), theirs[:-1], rtol=1e-6)
    assert sigmas[-1] > 1.9 * sigmas[-2], "as near to pure noise as a finite level lies"
    assert sigmas[0] == pytest.approx(float(build(ScheduleConfig(name=name)).sigma(times[:1])))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_linear_in_time(shift):
    """x_t = (1 - t) x0 + t noise, t shifted as by Esser et al. 2024, equation 23."""
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    sigma = build(ScheduleConfig(name="flow", shift=shift)).sigma(t)
    moved = t * 0.999
    moved = shift * moved / (1 + (shift - 1) * moved)
    assert torch.allclose(sigma / (1 + sigma), moved)


def test_karras_levels_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(18)
    assert karras_sigmas(18, 0.002, 80.0) == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)


def test_karras_levels_end_where_asked():
    sigmas = karras_sigmas(10, 0.01, 50.0)
    assert sigmas[0] == pytest.approx(50)
    assert sigmas[-2:] == pytest.approx([0.01, 0])
    assert karras_sigmas(1, 0.01, 50.0) == pytest.approx([50, 0])


@pytest.mark.parametrize(
    "bad", [{"name": "sigmoid"}, {"shift": 0}, {"shift": -1.0}, {"beta_start": 0.1}, {"zero_terminal_snr": True}]
)
def test_config_is_strict(bad):
    with pytest.raises(ValidationError):
        ScheduleConfig(**bad)


@pytest.mark.parametrize("levels", ["trailing", "linspace", "leading", "inner"])
@pytest.mark.parametrize("name", ["flow", "scaled_linear"])
def test_under_karras_an_edit_begins_the_lower_the_weaker_it_is(name, levels):
    """Also by a single step, whose own first and last level are the same."""
    schedule = build(ScheduleConfig(name=name, levels=levels, karras=True))
    begins = [spaced_sigmas(schedule, "schedule", 10, strength)[0] for strength in (0.1, 0.2, 0.5, 1.0)]
    assert begins == sorted(begins) and begins[0] < begins[-1] / 10
    assert begins[-1] == schedule.sigmas(10)[0]
