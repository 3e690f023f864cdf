"""Every solver against diffusers' scheduler of the same name, and on Gaussian data, whose denoiser is known."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from components.diffusion.schedules import karras_sigmas
from components.diffusion.solvers import SIGMA, SOLVERS, ddim, heun, plms
from tests.components.helpers import solved

SHAPE = (2, 3, 4, 4)
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def toy_noise(x_vp: Tensor, sigma: float) -> Tensor:
    """A smooth, non-linear stand-in for a net that predicts noise from the variance-preserving x."""
    return 0.9 * x_vp + 0.3 * torch.tanh(2 * x_vp + math.sin(math.log(sigma))) * x_vp.roll(1, -1).cos()


def toy_denoise(x: Tensor, sigma: float) -> Tensor:
    return x - sigma * toy_noise(x / math.sqrt(1 + sigma**2), sigma)


def steps_of_noise(count: int, seed: int = 5) -> Tensor:
    """(count, *SHAPE), equal to what a torch.Generator of that seed gives one step after the other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(SHAPE, generator=generator) for _ in range(count)])


@pytest.fixture
def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def discrete_sigmas(scheduler) -> list[float]:
    """Noise levels of a scheduler that works on time steps, 0 last."""
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps.long()].double()
    return [*((1 - alpha_bar) / alpha_bar).sqrt().tolist(), 0.0]


def sample_discrete(scheduler, x_vp: Tensor, **settings) -> Tensor:
    """diffusers' loop for a scheduler on variance-preserving time steps."""
    noises = settings.pop("noises", None)
    for step, t in enumerate(scheduler.timesteps):
        alpha_bar = float(scheduler.alphas_cumprod[int(t)])
        if noises is not None:
            settings["variance_noise"] = noises[step]
        answer = toy_noise(x_vp, math.sqrt((1 - alpha_bar) / alpha_bar))
        x_vp = scheduler.step(answer, t, x_vp, **settings).prev_sample
    return x_vp


def sample_continuous(scheduler, x: Tensor, **settings) -> Tensor:
    """diffusers' loop for a scheduler that keeps sigmas."""
    for step, t in enumerate(scheduler.timesteps):
        answer = toy_noise(scheduler.scale_model_input(x, t), float(scheduler.sigmas[step]))
        x = scheduler.step(answer, t, x, **settings).prev_sample
    return x


def to_vp(x: Tensor, sigma: float) -> Tensor:
    return x / math.sqrt(1 + sigma**2)


def assert_equal_images(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1, "a vanishing sample would agree with anything"
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("num_steps", [1, 5, 20])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_diffusers_ddim(start, num_steps, eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    sigmas, noises = discrete_sigmas(scheduler), steps_of_noise(num_steps)
    ours = solved(ddim(sigmas[0] * start, sigmas, lambda step: noises[step], eta=eta), toy_denoise)
    theirs = sample_discrete(scheduler, to_vp(sigmas[0] * start, sigmas[0]), eta=eta, noises=noises)
    assert_equal_images(ours, theirs)


@pytest.mark.parametrize("num_steps", [5, 50])
def test_ddpm_is_diffusers_ddpm(start, num_steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(num_steps)
    sigmas, noises = discrete_sigmas(scheduler), steps_of_noise(num_steps)
    ours = solved(SOLVERS["ddpm"](sigmas[0] * start, sigmas, lambda step: noises[step]), toy_denoise)
    generator = torch.Generator().manual_seed(5)
    theirs = sample_discrete(scheduler, to_vp(sigmas[0] * start, sigmas[0]), generator=generator)
    assert_equal_images(ours, theirs)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 12])
def test_plms_is_diffusers_pndm(start, num_steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.set_timesteps(num_steps)
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps.unique().flip(0)].double()
    sigmas = [*((1 - alpha_bar) / alpha_bar).sqrt().tolist(), 0.0]
    ours = solved(plms(sigmas[0] * start, sigmas, no_noise, SIGMA), toy_denoise)
    if num_steps == 1:  # diffusers repeats the only time step; without a second level there is nothing to repeat
        assert torch.equal(ours, solved(ddim(sigmas[0] * start, sigmas, no_noise), toy_denoise))
        return
    assert_equal_images(ours, sample_discrete(scheduler, to_vp(sigmas[0] * start, sigmas[0])))


def no_noise(step: int) -> Tensor:
    raise AssertionError("a deterministic solver asked for noise")


MULTISTEP = {"solver_order": 2, "final_sigmas_type": "zero"}
CONTINUOUS = {  # ours -> diffusers' class, its settings, whether its frame is variance-preserving
    "euler": ("EulerDiscreteScheduler", {}, False),
    "heun": ("HeunDiscreteScheduler", {}, False),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}, False),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **MULTISTEP}, True),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **MULTISTEP}, True),
    "unipc": ("UniPCMultistepScheduler", {"solver_type": "bh2", "predict_x0": True, **MULTISTEP}, True),
}


@pytest.mark.parametrize("num_steps", [2, 5, 20])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_solver_is_diffusers_scheduler_of_its_name(start, name, num_steps):
    diffusers = pytest.importorskip("diffusers")
    kind, settings, variance_preserving = CONTINUOUS[name]
    scheduler = getattr(diffusers, kind)(**BETAS, **settings)
    scheduler.set_timesteps(num_steps)
    sigmas = [sigma for sigma, after in pairwise([*scheduler.sigmas.tolist(), -1.0]) if sigma != after]
    assert len(sigmas) == num_steps + 1
    noises = steps_of_noise(num_steps)
    stochastic = name in {"euler_ancestral", "dpmpp_2m_sde"}
    x = sigmas[0] * start
    solver = functools.partial(heun, path=SIGMA) if name == "heun" else SOLVERS[name]
    ours = solved(solver(x, sigmas, (lambda step: noises[step]) if stochastic else no_noise), toy_denoise)
    seed = {"generator": torch.Generator().manual_seed(5)} if stochastic else {}
    theirs = sample_continuous(scheduler, to_vp(x, sigmas[0]) if variance_preserving else x, **seed)
    assert_equal_images(ours, theirs)


def test_every_solver_is_compared():
    assert set(SOLVERS) == {"ddim", "ddpm", "plms", *CONTINUOUS}


# Gaussian data N(MU, S^2): the denoiser is the posterior mean, the probability-flow ODE has a closed solution.
MU, S = 0.7, 0.5


def gaussian_denoise(x: Tensor, sigma: float) -> Tensor:
    return MU + (x - MU) * S**2 / (S**2 + sigma**2)


def exact(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return MU + (x - MU) * math.sqrt((S**2 + sigma_next**2) / (S**2 + sigma**2))


# UniC lifts UniPC-2 to 3 (Zhao et al. 2023, Theorem 3.1); the second-order start-up holds plms to 3
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3, "plms": 3}


@pytest.mark.parametrize("name", ORDERS)
def test_error_falls_at_the_solvers_order(name):
    start = torch.linspace(-3, 3, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    high, low = (2.0, 0.5) if name == "plms" else (5.0, 0.1)

    def error(num_steps: int) -> float:
        ramp = [step / num_steps for step in range(num_steps + 1)]
        times = [high / (1 + high) + (low / (1 + low) - high / (1 + high)) * r for r in ramp]
        even, geometric = ([time / (1 - time) for time in times], [high * (low / high) ** r for r in ramp])
        sigmas = even if name == "plms" else geometric  # its weights suppose equal steps
        got = solved(SOLVERS[name](high * start, sigmas, no_noise), gaussian_denoise)
        return float((got - exact(high * start, high, low)).abs().max())

    assert math.log2(error(64) / error(128)) > ORDERS[name] - 0.1


@pytest.mark.parametrize("name", ORDERS)
def test_deterministic_solver_reaches_the_data(name):
    start = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    sigmas = karras_sigmas(80, 0.002, 80)
    got = solved(SOLVERS[name](80 * start, sigmas, no_noise), gaussian_denoise)
    assert (got - exact(80 * start, 80, 0)).abs().max() < (0.05 if ORDERS[name] == 1 else 0.005)


def moments(name: str, num_steps: int) -> tuple[float, float]:
    """Mean and variance of a solver's samples, without sampling: on Gaussian data every step is linear, so the variance
    is the sum of squared responses to a unit of each independent noise. Row 0 has none, row 1 the start's."""
    sigmas = karras_sigmas(num_steps, 0.002, 80)
    units = torch.eye(num_steps + 2, dtype=torch.float64)[:, :, None, None, None]
    start = MU + math.hypot(80, S) * units[1]
    got = solved(SOLVERS[name](start, sigmas, lambda step: units[step + 2]), gaussian_denoise).flatten()
    return float(got[0]), float((got[1:] - got[0]).square().sum())


STOCHASTIC = {"ddpm": 1, "euler_ancestral": 1, "dpmpp_2m_sde": 2}


@pytest.mark.parametrize(("name", "order"), STOCHASTIC.items())
def test_stochastic_solver_samples_the_data(name, order):
    means, variances = zip(*(moments(name, num_steps) for num_steps in (100, 200, 400)), strict=True)
    assert means == pytest.approx([MU] * 3, abs=1e-6)
    coarse, middle, fine = (abs(variance / S**2 - 1) for variance in variances)
    assert fine < 0.04
    assert math.log2(coarse / middle) > order - 0.3
    assert math.log2(middle / fine) > order - 0.3


def test_every_solver_is_checked_on_gaussian_data():
    assert {*ORDERS, *STOCHASTIC} == set(SOLVERS)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_gives_the_denoised_image(name, start):
    got = solved(SOLVERS[name](3.0 * start, [3.0, 0.0], no_noise), toy_denoise)
    assert torch.allclose(got, toy_denoise(3.0 * start, 3.0), atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_number_of_evaluations(name, start):
    asked = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return toy_denoise(x, sigma)

    solved(SOLVERS[name](start, [4.0, 2.0, 1.0, 0.0], lambda step: torch.zeros_like(start)), denoise)
    assert asked == {"heun": [4, 2, 2, 1, 1], "plms": [4, 2, 2, 1]}.get(name, [4, 2, 1])
