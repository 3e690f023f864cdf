"""Weightings against their closed forms."""

from __future__ import annotations

import pytest
import torch

from components.diffusion.denoiser import Uncertainty
from components.diffusion.objectives import OBJECTIVES
from components.diffusion.weightings import balanced, min_snr

SIGMAS = torch.logspace(-3, 3, 50, dtype=torch.float64)
SNR = SIGMAS**-2
GAMMA = 5.0
CAPPED = SNR.clamp(max=GAMMA)
PUBLISHED = {  # Hang et al. 2023: on the clean image's error, the noise's, the velocity's
    "x0": CAPPED,
    "epsilon": CAPPED / SNR,
    "v": CAPPED / (SNR + 1),
    "flow": CAPPED * (SIGMAS / (1 + SIGMAS)) ** 2,
    "edm": CAPPED / (SNR + 1),  # with sigma_data = 1 its target is the velocity up to sign
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_min_snr_is_the_published_weight(objective):
    got = min_snr(SIGMAS, OBJECTIVES[objective](SIGMAS), GAMMA)
    assert torch.allclose(got, PUBLISHED[objective])


def test_every_objective_weighs_the_clean_images_error_alike():
    clean, estimate = torch.randn(2, len(SIGMAS), 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = []
    for objective in OBJECTIVES.values():
        coefficients = objective(SIGMAS)
        error = ((clean - estimate) / coefficients.c_out[:, None]).square().mean(1)  # of the net's answer
        losses.append(min_snr(SIGMAS, coefficients, GAMMA) * error)
    for loss in losses[1:]:
        assert torch.allclose(loss, losses[0])


def test_the_best_uncertainty_is_the_logarithm_of_the_error():
    error = torch.tensor([0.01, 0.5, 1.0, 20.0])
    u = error.log().requires_grad_()
    loss = balanced(error, u)
    assert torch.allclose(loss, 1 + error.log())
    assert torch.allclose(torch.autograd.grad(loss.sum(), u)[0], torch.zeros(4), atol=1e-6)
    for off in (-0.5, 0.5):
        assert (balanced(error, u + off) > loss).all()


def test_learned_uncertainty_finds_the_error_of_every_level():
    """Then each level pulls at the net alike: the weight times the error is one throughout."""
    torch.manual_seed(0)
    net, generator = Uncertainty(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)

    def expected(level: torch.Tensor) -> torch.Tensor:
        return torch.exp(2 * torch.cos(level / 300) - 1)

    levels = torch.linspace(0, 999, 40)
    assert (net(levels) == 0).all(), "begins as no weighting"
    for _ in range(800):
        level = 999 * torch.rand(256, generator=generator)
        noisy = expected(level) * (0.5 + torch.rand(256, generator=generator))  # errors scatter around their mean
        optimizer.zero_grad()
        balanced(noisy, net(level)).mean().backward()
        optimizer.step()
    weighted = expected(levels) / net(levels).detach().exp()
    assert (weighted - 1).abs().mean() < 0.1
