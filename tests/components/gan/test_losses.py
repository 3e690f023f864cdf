"""Losses and penalties at points computed by hand and against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from components.gan import penalties
from components.gan.losses import LOSSES, best

REAL, FAKE = torch.tensor([2.0, -0.5]), torch.tensor([0.5, -3.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


EXPECTED = {  # the discriminator's loss, the generator's
    "non_saturating": (
        (softplus(-2) + softplus(0.5) + softplus(0.5) + softplus(-3)) / 2,
        (softplus(-0.5) + softplus(3)) / 2,
    ),
    "hinge": ((0 + 1.5 + 1.5 + 0) / 2, (-0.5 + 3) / 2),
    "wasserstein": ((0.5 - 3) / 2 - (2 - 0.5) / 2, (-0.5 + 3) / 2),
    "least_squares": ((1 + 2.25 + 0.25 + 9) / 4, (0.25 + 16) / 4),
    "relativistic": ((softplus(-1.5) + softplus(-2.5)) / 2, (softplus(1.5) + softplus(2.5)) / 2),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses_at_points_computed_by_hand(name):
    loss, (discriminator, generator) = LOSSES[name], EXPECTED[name]
    assert float(loss.discriminator(REAL, FAKE, 1.0)) == pytest.approx(discriminator)
    assert float(loss.generator(FAKE, REAL if loss.paired else None)) == pytest.approx(generator)


@pytest.mark.parametrize("name", LOSSES)
def test_scores_may_have_several_parts(name):
    loss = LOSSES[name]
    real, fake = torch.stack([REAL, REAL], 1), torch.stack([FAKE, FAKE], 1)
    assert float(loss.discriminator(real, fake, 1.0)) == pytest.approx(EXPECTED[name][0])
    assert float(loss.generator(fake, real)) == pytest.approx(EXPECTED[name][1])


@pytest.mark.parametrize("name", LOSSES)
def test_both_players_pull_scores_apart_ways(name):
    loss, real, fake = LOSSES[name], REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    up, down = torch.autograd.grad(loss.discriminator(real, fake, 1.0), [real, fake])
    assert (up <= 0).any() and (down >= 0).any()
    (pulled,) = torch.autograd.grad(loss.generator(fake, REAL), [fake])
    assert (pulled < 0).all(), "the generator wants higher scores"


@pytest.mark.parametrize("name", LOSSES)
def test_realness_tells_good_scores_from_bad(name):
    real, fake = torch.tensor([3.0, 4.0, -2.0]), torch.tensor([-3.0, -4.0, -2.5])
    assert (LOSSES[name].realness(real, fake) > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["non_saturating", "least_squares"])
def test_one_sided_smoothing_moves_the_optimum_of_real_scores_alone(name):
    scores = torch.linspace(-4, 4, 801)
    none = torch.zeros(1)

    def optimum(losses: list[torch.Tensor]) -> float:
        return float(scores[torch.stack(losses).argmin()])

    loss = LOSSES[name].discriminator
    expected = {"non_saturating": math.log(0.8 / 0.2), "least_squares": 0.8}[name]  # sigmoid(x) = 0.8; x = 0.8
    assert optimum([loss(x[None], none, 0.8) for x in scores]) == pytest.approx(expected, abs=0.02)
    assert optimum([loss(none, x[None], 0.8) for x in scores]) == optimum([loss(none, x[None], 1.0) for x in scores])


def test_top_k_keeps_the_rows_that_score_best():
    scores, partners = torch.tensor([1.0, 5, -2, 3]), torch.tensor([10.0, 20, 30, 40])
    fake, real = best(scores, partners, 0.5)
    assert sorted(zip(fake.tolist(), real.tolist(), strict=True)) == [(3, 40), (5, 20)]
    assert best(scores, None, 0.01)[0].tolist() == [5]
    assert len(best(torch.randn(6, 3), None, 1.0)[0]) == 6


@pytest.fixture
def critic():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()


def by_differences(critic, x: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Each row's gradient norm, from values of the critic alone."""
    squares = torch.zeros(len(x), dtype=x.dtype)
    with torch.no_grad():
        for place in range(x[0].numel()):
            moved = torch.zeros(x[0].numel(), dtype=x.dtype)
            moved[place] = step
            moved = moved.view_as(x[0])
            squares += ((critic(x + moved) - critic(x - moved)) / (2 * step)) ** 2
    return squares.sqrt()


def test_gradient_penalty_by_finite_differences(critic):
    x = torch.randn(5, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    norms = by_differences(critic, x.detach())
    assert torch.allclose(penalties.gradient_norms(critic(x), x), norms, atol=1e-8)
    assert float(penalties.gradient_penalty(critic(x), x).detach()) == pytest.approx(float((norms - 1).square().mean()))


def test_r1_and_r2_are_squared_gradients_of_their_own_rows(critic):
    real, fake = torch.randn(2, 4, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    real, fake = real.requires_grad_(), fake.requires_grad_()
    scores = critic(torch.cat([real, fake]))
    r1, r2 = penalties.squared_gradients(list(scores.chunk(2)), [real, fake])
    assert float(r1.detach()) == pytest.approx(float(by_differences(critic, real.detach()).square().mean()))
    assert float(r2.detach()) == pytest.approx(float(by_differences(critic, fake.detach()).square().mean()))


def test_penalty_reaches_the_weights(critic):
    x = torch.randn(5, 1, 2, 3, dtype=torch.float64).requires_grad_()
    penalties.gradient_penalty(critic(x), x).backward()
    assert critic[1].weight.grad.abs().max() > 0


def test_interpolates_lie_between_their_pair():
    real, fake = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    between = penalties.interpolate(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    assert between[:, 0, 0, 0].tolist() == [1.0, 0.75, 0.0]


def test_lecam_at_a_point_computed_by_hand():
    value = penalties.lecam(REAL, FAKE, torch.tensor(1.0), torch.tensor(-1.0))
    assert float(value) == pytest.approx((3**2 + 0.5**2) / 2 + (0.5**2 + 4**2) / 2)


def test_orthogonality_is_zero_for_orthogonal_rows_of_any_length():
    assert float(penalties.orthogonality([torch.tensor([[2.0, 0], [0, 0.5]])])) == 0
    assert float(penalties.orthogonality([torch.tensor([[1.0, 1], [1, 0]])])) == 2


@pytest.mark.parametrize("shape", [(30, 4), (4, 30), (6, 2, 3, 3)])
def test_orthogonality_of_tall_and_wide_weights_against_its_definition(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    gram = weight.flatten(1) @ weight.flatten(1).T
    expected = (gram * (1 - torch.eye(len(gram), dtype=torch.float64))).square().sum()
    found = penalties.orthogonality([weight])
    assert torch.allclose(found, expected, rtol=1e-10)
    (ours,), (theirs,) = (torch.autograd.grad(value, weight, retain_graph=True) for value in (found, expected))
    assert torch.allclose(ours, theirs, rtol=1e-8)


def test_path_lengths_of_a_linear_map():
    """images = A w: the pull of noise y back is A^T y, whatever w."""
    matrix = torch.randn(1 * 4 * 4, 3, generator=torch.Generator().manual_seed(3))
    w = torch.randn(5, 3).requires_grad_()
    images, noise = (w @ matrix.T).view(5, 1, 4, 4), torch.randn(5, 1, 4, 4)
    expected = (noise.flatten(1) @ matrix).norm(dim=1) / 4
    assert torch.allclose(penalties.path_lengths(images, w, noise), expected, atol=1e-5)
