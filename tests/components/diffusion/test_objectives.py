"""Objectives: every target is its paper's formula, and answering it exactly gives back the clean image."""

from __future__ import annotations

import pytest
import torch

from components.diffusion.guidance import Guidance, Preconditioner, solve
from components.diffusion.objectives import OBJECTIVES, target
from components.diffusion.schedules import ScheduleConfig, build
from components.diffusion.solvers import SOLVERS
from components.sampling.trajectories import Call, drive

SIGMAS = torch.tensor([1e-4, 0.01, 0.3, 1.0, 7.0, 80.0, 999.0], dtype=torch.float64)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, len(SIGMAS), 2, 4, 4, generator=generator)
    return clean, noise


def wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_exact_answer_denoises_exactly(name, pair):
    clean, noise = (tensor.double() for tensor in pair)
    sigma = wide(SIGMAS)
    c_skip, c_out, _ = OBJECTIVES[name](sigma)
    denoised = c_skip * (clean + sigma * noise) + c_out * target(clean, noise, sigma, OBJECTIVES[name])
    assert torch.allclose(denoised, clean, atol=1e-9)


def published(name: str, clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    alpha, sigma_vp = (1 + sigma**2).rsqrt(), sigma * (1 + sigma**2).rsqrt()
    skip = 1 / (sigma**2 + 1)  # Karras et al. 2022, Table 1, with sigma_data = 1
    return {
        "epsilon": noise,
        "x0": clean,
        "v": alpha * noise - sigma_vp * clean,
        "flow": noise - clean,
        "edm": (clean - skip * (clean + sigma * noise)) / (sigma * (sigma**2 + 1).rsqrt()),
    }[name]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_target_is_the_published_one(name, pair):
    clean, noise = pair
    got = target(clean, noise, wide(SIGMAS), OBJECTIVES[name])
    assert got.dtype == clean.dtype
    assert torch.allclose(got.double(), published(name, clean.double(), noise.double(), wide(SIGMAS)), atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_input_lies_in_the_frame_of_the_paper(name):
    """x in front of the net: unit variance for unit-variance data, (1 - t) x0 + t noise for flow matching."""
    _, _, c_in = OBJECTIVES[name](SIGMAS)
    if name == "flow":
        t = SIGMAS / (1 + SIGMAS)
        assert torch.allclose(torch.stack([c_in, c_in * SIGMAS]), torch.stack([1 - t, t]))
    else:
        assert torch.allclose(c_in**2 * (1 + SIGMAS**2), torch.ones_like(SIGMAS))


def test_edm_target_has_unit_variance():
    """The effective training target's variance is one at every noise level (Karras et al. 2022, appendix B.6)."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 200_000, generator=generator)
    for sigma in SIGMAS:
        assert float(target(clean, noise, sigma, OBJECTIVES["edm"]).var()) == pytest.approx(1, abs=0.02)


class Oracle:
    """A net that knows the one clean image per class, and so the exact answer to every question."""

    def __init__(self, objective: str, preconditioner: Preconditioner, images: torch.Tensor):
        self.objective, self.preconditioner, self.images = OBJECTIVES[objective], preconditioner, images
        self.rows: list[int] = []

    def __call__(self, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        sigma = wide(self.preconditioner.schedule.sigma(level.double() / 999))
        c_in = self.objective(sigma).c_in
        clean = self.images[label].double()
        return target(clean, (x.double() / c_in - clean) / sigma, sigma, self.objective).float()


@pytest.mark.parametrize("schedule", ["flow", "linear", "cosine"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_denoiser_with_an_exact_net_gives_the_clean_image(objective, schedule):
    preconditioner = Preconditioner(objective, build(ScheduleConfig(name=schedule)))
    images = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1])
    for sigma in (0.05, 1.0, 20.0):
        x = images[labels] + sigma * torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
        got = drive(
            preconditioner.call(x, sigma, {"label": labels}), {"denoiser": Oracle(objective, preconditioner, images)}
        )
        assert torch.allclose(got, images[labels], atol=2e-3 * max(1, sigma))


def guided(preconditioner: Preconditioner, labels: list[int], guidance: Guidance):
    """Number 2 stands for no class."""
    return preconditioner.guided({"label": torch.tensor(labels)}, {"label": torch.tensor([2, 2])}, guidance)


def test_guidance_extrapolates_and_packs_rows():
    preconditioner = Preconditioner("x0", build(ScheduleConfig()))
    images = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x, labels = torch.randn(2, 2, 4, 4), torch.tensor([0, 1])
    net = Oracle("x0", preconditioner, images)
    for scale in (0.0, 1.0, 2.5):
        got = drive(guided(preconditioner, [0, 1], Guidance(scale))(x, 1.0), {"denoiser": net})
        assert torch.allclose(got, images[2] + scale * (images[labels] - images[2]), atol=1e-5)
    assert net.rows == [4, 2, 4], "scale 1 must cost no second row"
    drive(guided(preconditioner, [2, 2], Guidance(2.5))(x, 1.0), {"denoiser": net})
    assert net.rows[-1] == 2, "nothing to guide towards must cost no second row"


class Linear:
    """A net that answers a multiple of what it sees, and counts its rows."""

    def __init__(self, factor: float):
        self.factor, self.rows = factor, []

    def __call__(self, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        return self.factor * x.roll(1, -1) * (1 + label[:, None, None, None])


def test_guidance_has_an_interval_outside_of_which_no_row_is_spent():
    preconditioner, x = Preconditioner("flow", build(ScheduleConfig())), torch.randn(2, 2, 4, 4)
    guidance, net = Guidance(3.0, interval=(0.5, 2.0)), Linear(0.5)
    for sigma, within in ((0.4, False), (0.5, False), (0.6, True), (2.0, True), (2.1, False)):
        got = drive(guided(preconditioner, [0, 1], guidance)(x, sigma), {"denoiser": net})
        plain = drive(
            guided(preconditioner, [0, 1], Guidance(3.0 if within else 1.0))(x, sigma), {"denoiser": Linear(0.5)}
        )
        assert torch.equal(got, plain)
    assert net.rows == [2, 2, 4, 4, 2]


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_rescaled_guidance_is_the_published_one(share):
    """Lin et al. 2024, equations 14 to 16."""
    better, worse = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = worse + 7.5 * (better - worse)
    rescaled = torch.stack([image * wanted.std() / image.std() for image, wanted in zip(plain, better, strict=True)])
    got = Guidance(7.5, rescale=share).combine(better, worse)
    assert torch.allclose(got, share * rescaled + (1 - share) * plain, atol=1e-5)
    assert (got - plain).abs().max() > 1


def test_autoguidance_asks_a_second_net_the_same_question():
    """D = D_guide + scale * (D - D_guide) (Karras et al. 2024a, equation 4), and one row a net."""
    preconditioner, x, sigma = Preconditioner("v", build(ScheduleConfig(name="cosine"))), torch.randn(2, 2, 4, 4), 1.5
    nets, labels = {"denoiser": Linear(0.5), "guide": Linear(0.2)}, {"label": torch.tensor([0, 1])}
    got = drive(preconditioner.guided(labels, labels, Guidance(2.5, guide="guide"))(x, sigma), nets)
    assert [net.rows for net in nets.values()] == [[2], [2]]
    better, worse = (drive(preconditioner.call(x, sigma, labels), {"denoiser": net}) for net in nets.values())
    assert torch.allclose(got, worse + 2.5 * (better - worse), atol=1e-5)
    drive(preconditioner.guided(labels, labels, Guidance(1.0, guide="guide"))(x, sigma), nets)
    assert nets["guide"].rows == [2, 2], "scale 1 must ask no guide"


def test_solve_hands_on_every_network_call():
    preconditioner = Preconditioner("x0", build(ScheduleConfig()))
    trajectory = solve(
        SOLVERS["heun"](torch.ones(2, 1, 2, 2), [4.0, 1.0, 0.0], None),
        guided(preconditioner, [1, 1], Guidance(3.0)),
    )
    calls: list[Call] = [next(trajectory)]
    with pytest.raises(StopIteration) as stop:
        while True:
            calls.append(trajectory.send(torch.zeros(4, 1, 2, 2)))
    assert [len(call.inputs["x"]) for call in calls] == [4, 4, 4]
    assert [call.inputs["label"].tolist() for call in calls] == [[1, 1, 2, 2]] * 3
    assert stop.value.value.shape == (2, 1, 2, 2)
