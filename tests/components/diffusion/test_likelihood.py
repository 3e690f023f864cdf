"""Likelihood by the probability-flow equation against densities that are known."""

from __future__ import annotations

import math

import pytest
import torch

from components.data.randomness import Draws
from components.diffusion.likelihood import levels, log_density
from components.diffusion.schedules import SIGMA_MIN
from tests.components.families.test_diffusion_options import DESCRIBED, TEXT
from tests.components.helpers import IMAGES, build


@pytest.mark.parametrize("spread", [0.5, 1.0])
@pytest.mark.parametrize("largest", [80.0, 999.0])
def test_gaussian_data_have_the_density_of_a_gaussian(spread, largest):
    x = spread * torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    variance = spread**2 + SIGMA_MIN**2
    expected = -0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).sum(1).double()

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return x * spread**2 / (spread**2 + sigma**2)

    found = log_density(denoise, x, torch.ones_like(x), levels(largest))
    assert torch.allclose(found, expected, atol=0.02), (found - expected).abs().max()


def test_the_trace_of_a_mixing_net_is_right_on_average():
    """One probe errs by what lies beside the diagonal; over signs the error is nought."""
    mixing = torch.tensor([[0.5, 0.3], [-0.2, 0.4]])
    x = torch.randn(1, 2, generator=torch.Generator().manual_seed(1)).expand(4, 2)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    found = log_density(lambda x, sigma: x @ mixing.T, x, signs, [1.0, 1.1])
    ends = found - math.log(1.1) * (2 - 0.9)  # what the same way gives without any change
    assert found.std() > 1e-3, "single probes differ"
    none = log_density(lambda x, sigma: x @ mixing.T, x, torch.zeros_like(x), [1.0, 1.1]) - math.log(1.1) * 2
    assert ends.mean().item() == pytest.approx(none[0].item(), abs=1e-6)


def test_latent_diffusion_tells_a_density_of_latents():
    """Of a net that begins with an answer of zero: of the noise that is expected then."""
    family = build("latent_diffusion")
    likelihood = family.likelihood
    assert (likelihood.kind, likelihood.dequantisation, likelihood.latents) == ("estimate", "none", 128)
    rows = 0.5 * torch.randn(3, *IMAGES.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = likelihood.log_probability(rows, torch.tensor([0, 1, 2]), Draws.of_seeds(torch.arange(3)))
    bits = -found / (likelihood.values_of(rows) * math.log(2))
    assert bits.min() > 0 and bits.max() < 8
    assert build("latent_diffusion", data=DESCRIBED, **TEXT).likelihood is None


@pytest.mark.parametrize("name", ["consistency", "shortcut", "meanflow", "progressive"])
def test_students_have_no_likelihood(name):
    assert build(name, data=IMAGES).likelihood is None


def test_pixel_diffusion_tells_an_estimate():
    family = build("latent_diffusion", data=IMAGES)
    likelihood = family.likelihood
    assert (likelihood.kind, likelihood.dequantisation) == ("estimate", "uniform")
    rows = family.medium.quantised(0.5 * torch.randn(3, *IMAGES.shape))
    draws = Draws.of_seeds(torch.arange(3))
    with torch.inference_mode():
        found = likelihood.log_probability(rows, torch.tensor([0, 1, 2]), draws)
        alone = likelihood.log_probability(rows[1:2], torch.tensor([1]), Draws(draws.keys[1:2]))
    assert found.isfinite().all() and alone.item() == pytest.approx(found[1].item(), rel=1e-4)
    bits = -found / (256 * math.log(2))
    assert bits.min() > 5 and bits.max() < 15, "an untrained net: noise of a few bits more than are stored"
