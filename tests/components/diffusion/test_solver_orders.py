"""The order of every solver over every schedule and spacing, and its errors beside those of diffusers' scheduler for
that schedule, on a mixture of Gaussians whose denoiser is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from components.diffusion.schedules import ScheduleConfig, build, spaced_sigmas
from components.diffusion.solvers import SOLVERS
from tests.benchmarks import solver_order as orders
from tests.components.helpers import solved

STEPS = (16, 32, 64)
# what a published order comes to where the steps shrink everywhere in the solver's own variable
KARRAS = {"ddim": 0.95, "euler": 0.95, "heun": 1.95, "plms": 1.95, "dpmpp_2m": 1.95, "unipc": 2.8}
# equal times leave the last steps of log sigma as long as they were, and change their length abruptly
SCHEDULE = {"ddim": 0.85, "euler": 0.85, "heun": 1.9, "plms": 0.9, "dpmpp_2m": 1.1, "unipc": 1.2}
LEAST = {"karras": KARRAS, "schedule": SCHEDULE}
PLACES = [(schedule, spacing) for schedule in orders.SCHEDULES for spacing in orders.SPACINGS]


def test_solvers_keep_their_order_on_every_schedule(capsys):
    # to the last level above 0: the step from there is of first order for all
    table = orders.table(STEPS, whole=False)
    found = {
        place: {name: orders.order(errors, STEPS) for name, errors in by_solver.items()}
        for place, by_solver in table.items()
    }
    with capsys.disabled():
        print(f"\n{'order, ' + ' to '.join(map(str, STEPS[-2:])) + ' steps':30}", *map("{:>10}".format, KARRAS))
        for place, by_solver in found.items():
            print(f"{place:30}", *(f"{value:>10.2f}" for value in by_solver.values()))
    for place, by_solver in found.items():
        least = LEAST[place.rpartition(", ")[2]]
        assert {name: value for name, value in by_solver.items() if value < least[name]} == {}, place
        # the order of plms falls where steps change abruptly, but what is left is little
        assert table[place]["plms"][-1] < table[place]["ddim"][-1] / 40, place


@pytest.mark.parametrize(("schedule", "spacing"), PLACES)
def test_a_second_evaluation_a_step_pays(schedule, spacing):
    (ddim,) = orders.errors("ddim", schedule, spacing, (32,))
    (heun,) = orders.errors("heun", schedule, spacing, (16,))
    (plms,) = orders.errors("plms", schedule, spacing, (31,))
    assert heun < ddim
    assert plms < ddim / 2


@pytest.mark.parametrize(("schedule", "spacing"), PLACES)
def test_stochastic_solvers_approach_the_data_on_every_schedule(schedule, spacing):
    built = build(orders.SCHEDULES[schedule])
    found = {
        name: [orders.spread_error(name, spaced_sigmas(built, spacing, count)) for count in (100, 200)]
        for name in orders.STOCHASTIC
    }
    for name in ("ddpm", "euler_ancestral"):
        assert math.log2(found[name][0] / found[name][1]) > 0.7
    assert found["dpmpp_2m_sde"][1] < found["ddpm"][1] / 3


def test_every_solver_is_measured():
    assert {*orders.DETERMINISTIC, *orders.STOCHASTIC} == set(SOLVERS)


def velocity(z: torch.Tensor, time: float) -> torch.Tensor:
    """What a perfect flow-matching net answers: noise - x0 for z = (1 - time) x0 + time noise."""
    x, sigma = z / (1 - time), time / (1 - time)
    x0 = orders.denoised(x, sigma)
    return (x - x0) / sigma - x0


@pytest.mark.parametrize("num_steps", [3, 8, 16])
@pytest.mark.parametrize(
    ("name", "kind"), [("euler", "FlowMatchEulerDiscreteScheduler"), ("heun", "FlowMatchHeunDiscreteScheduler")]
)
def test_solver_is_diffusers_flow_matching_scheduler(name, kind, num_steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, kind)()
    scheduler.set_timesteps(num_steps)
    scheduler.sigmas = (scheduler.sigmas * 0.999).double()  # theirs are times, and start from pure noise
    times = [time for time, after in pairwise([*scheduler.sigmas.tolist(), -1.0]) if time != after]
    assert len(times) == num_steps + 1
    sigmas = [time / (1 - time) for time in times]
    start = orders.starts(sigmas[0])
    z = start * (1 - times[0])
    for step, t in enumerate(scheduler.timesteps):
        z = scheduler.step(velocity(z, float(scheduler.sigmas[step])), t, z).prev_sample
    assert (solved(SOLVERS[name](start, sigmas, None), orders.denoised) - z).abs().max() < 1e-5


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_plms_and_heun_are_closer_than_diffusers_pndm_for_velocities(num_steps):
    diffusers = pytest.importorskip("diffusers")
    betas = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
    scheduler = diffusers.PNDMScheduler(
        **betas, prediction_type="v_prediction", skip_prk_steps=True, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(num_steps)
    alpha_bar = scheduler.alphas_cumprod.double()
    places = scheduler.timesteps.unique().flip(0)
    sigmas = [*((1 - alpha_bar[places]) / alpha_bar[places]).sqrt().tolist(), 0.0]
    x = orders.starts(sigmas[0]) * alpha_bar[places[0]].sqrt()
    for t in scheduler.timesteps:
        signal, noise = float(alpha_bar[t].sqrt()), float((1 - alpha_bar[t]).sqrt())
        x0 = orders.denoised(x / signal, noise / signal)
        x = scheduler.step(signal * (x - signal * x0) / noise - noise * x0, t, x).prev_sample
    theirs = float((x - orders.ends(sigmas[0], 0.0)).norm(dim=1).mean())
    assert orders.error(SOLVERS["plms"], sigmas) < theirs / 2
    assert orders.error(SOLVERS["heun"], sigmas[::2] if sigmas[::2][-1] == 0 else [*sigmas[::2], 0.0]) < theirs


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("levels", ["trailing", "linspace", "leading"])
def test_times_are_those_of_diffusers(name, levels):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing=levels, steps_offset=1)
    scheduler.set_timesteps(20)
    schedule = build(ScheduleConfig(name=name, levels=levels, offset=1))
    times = schedule.time(torch.tensor(schedule.sigmas(20)[:-1], dtype=torch.float64)) * 999
    assert (times - scheduler.timesteps.double()).abs().max() < 1.01  # they round to whole places of the table
