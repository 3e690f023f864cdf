"""The variational autoencoder as a model of its own: its density of latents, its bounds."""

from __future__ import annotations

import math

import pytest
import torch

from components.autoencoding.variational import (
    LatentDensity,
    free_bits_kl,
    importance_bound,
    posterior_log_density,
    standard_log_density,
)
from components.config import parse
from components.data.randomness import Draws
from components.errors import ConfigError
from components.families import family_class
from components.sampling.requests import Blend, Conditions, Request
from components.training.loop import TrainingConfig, fit
from tests.components.helpers import Rows, build, no_wrap, stream, tiny_data


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_bounds_are_in_order_on_a_linear_gaussian_model():
    """z ~ N(0, 1), x | z ~ N(2 z, 0.5^2), and a posterior that is a little wrong: the evidence lower bound lies below
    the bound of many weights, and that below log p(x) = log N(x; 0, 4.25)."""
    rows, draws = 2000, normal(1, 2000, 64)
    x = normal(2, rows) * 4.25**0.5
    mean, std = 2 * x / 4.25 + 0.1, torch.full_like(x, 0.3)
    z = mean[:, None] + std[:, None] * draws
    log_x = -0.5 * (((x[:, None] - 2 * z) / 0.5).square() + math.log(2 * math.pi * 0.25))
    posterior = posterior_log_density(draws.reshape(-1, 1), std.repeat_interleave(64)[:, None]).reshape(rows, 64)
    weights = log_x + standard_log_density(z[..., None]) - posterior
    exact = -0.5 * (x.square() / 4.25 + math.log(2 * math.pi * 4.25))
    elbo, few, many = (importance_bound(weights[:, :count]).mean().item() for count in (1, 4, 64))
    assert elbo < few < many <= exact.mean().item() + 1e-3
    assert exact.mean().item() - many < 0.05 < exact.mean().item() - elbo


def test_a_density_of_latents_is_that_of_torch():
    torch.manual_seed(0)
    density = LatentDensity(3, components=2, num_classes=2).double()
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    z, label = normal(3, 5, 3), torch.tensor([0, 1, 1, 0, 1])
    factors = density.factors()
    for row in range(5):
        precision = factors[label[row]] @ factors[label[row]].transpose(1, 2)
        parts = torch.distributions.MultivariateNormal(density.mean[label[row]], precision_matrix=precision)
        mixed = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=density.logits[label[row]]), parts
        )
        assert density(z, label)[row].item() == pytest.approx(mixed.log_prob(z[row]).item(), abs=1e-9)


def test_draws_of_the_density_have_its_moments():
    torch.manual_seed(1)
    density = LatentDensity(2, components=2, num_classes=0)
    with torch.no_grad():
        density.mean.copy_(torch.tensor([[[3.0, 0.0], [-3.0, 1.0]]]))
        density.logits.copy_(torch.tensor([[0.0, math.log(3)]]))
        density.lower.copy_(torch.tensor([[0.5, 0.0], [0.7, 0.1]]).expand(1, 2, 2, 2))
        draws = Draws.of_seeds(torch.arange(20_000))
        drawn = density.draw(draws.normal("z", (2,)), draws.uniform("u", (1,)))
    first = drawn[:, 0] > 0
    assert first.float().mean().item() == pytest.approx(0.25, abs=0.02)
    factor = density.factors()[0, 0]
    covariance = torch.linalg.inv(factor @ factor.T)
    assert torch.allclose(torch.cov(drawn[~first].T), covariance, atol=0.05)
    assert torch.allclose(drawn[~first].mean(0), torch.tensor([-3.0, 1.0]), atol=0.05)


def test_free_bits_cost_nothing_and_pull_nothing():
    mean, std = torch.zeros(2, 3, 2, 2, requires_grad=True), torch.ones(2, 3, 2, 2)
    assert free_bits_kl(mean, std, 0.0).item() == 0
    small = free_bits_kl(mean + 0.1, std, 0.5)
    assert small.item() == pytest.approx(1.5)
    assert not torch.autograd.grad(small, mean)[0].any()
    assert free_bits_kl(mean + 2, std, 0.5).item() == pytest.approx(3 * 4 * 2.0)


@pytest.fixture(scope="module")
def family():
    family = build("vae", reconstruction="logistic", kl_weight=1.0, density={"components": 2})
    fit(
        family,
        stream("vae"),
        TrainingConfig(steps=4, batch_size=6, report_every=4, save_every=4),
        start=None,
        wrap=no_wrap,
        report=lambda step, figures: figures,
        save=lambda state: None,
    )
    family.nets.eval()
    return family


def test_one_weight_is_the_loss_and_more_are_closer(family):
    columns = Rows(tiny_data("vae")).columns
    rows, label = family.medium.rows(columns), columns["label"]
    draws = Draws.of_seeds(torch.arange(len(rows)))
    with torch.no_grad():
        weights = family.log_weights(rows, label, draws, 8)
        assert importance_bound(weights[:, :1]).mean() < importance_bound(weights).mean()
        assert family.likelihood.kind == "bound"


def test_latents_have_a_density_of_each_class(family):
    assert family.accepts == {"blend", "label"} and family.kept == ("autoencoder", "density")
    seeds, label = torch.tensor([1, 1, 1]), torch.tensor([0, 1, 2])
    drawn = family.sample(Request(seeds, family.Settings(), Conditions(label=label)))
    assert (drawn[0] - drawn[1]).abs().max() > 1e-4
    with torch.inference_mode():
        way = Request(
            seeds, family.Settings(), Conditions(label=label), Blend(None, torch.ones(3), label=label.flip(0))
        )
        assert torch.allclose(family.sample(way), drawn.flip(0), atol=1e-5)


def test_without_a_density_of_pixels_there_is_no_likelihood():
    assert build("vae").likelihood is None
    with pytest.raises(ConfigError, match="codebook: a quantised posterior has no density"):
        parse(family_class("vae").Config, {"codebook": {}, "density": {}}, "model")
