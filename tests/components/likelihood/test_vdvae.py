"""The hierarchical autoencoder against its definition: what posterior and prior share, and what a divergence is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from components.data.randomness import Draws
from components.likelihood.contract import bits_per_value
from components.sampling.requests import Conditions, Request
from tests.components.flows.test_flows import shaken
from tests.components.helpers import Rows, build, stream, tiny_data

LABEL = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def family():
    family = build("vdvae", blocks=[1, 2])
    shaken(family.nets["vdvae"], 0.1)
    return family


def told(family) -> tuple[torch.Tensor, torch.Tensor]:
    return family.medium.rows(Rows(tiny_data("vdvae"), 4).columns), LABEL


def test_what_the_posterior_drew_the_prior_makes_the_same_of(family):
    net, (rows, label) = family.nets["vdvae"], told(family)
    noise = Draws.of_seeds(torch.arange(4)).normal("posterior", (net.num_latents,))
    with torch.no_grad():
        found = net(rows, noise, label)
        assert found.latents.shape == noise.shape == (4, sum(math.prod(shape) for shape in net.shapes))
        assert torch.allclose(net.sample(found.latents, label), found.numbers, atol=1e-5)
        assert net.sample(noise, label).shape == found.numbers.shape
        assert not torch.allclose(net.sample(noise, label), found.numbers, atol=1e-2)


def test_latents_come_from_the_coarsest_resolution_down(family):
    assert family.nets["vdvae"].shapes == [(2, 8, 8), (2, 8, 8), (2, 16, 16)]


def test_the_divergence_is_the_mean_of_what_draws_say(family):
    net, (rows, label) = family.nets["vdvae"], told(family)
    many = 200
    noise = Draws.of_seeds(torch.arange(4 * many)).normal("posterior", (net.num_latents,))
    with torch.no_grad():
        found = net(rows.repeat_interleave(many, 0), noise, label.repeat_interleave(many))
    divergence, said = found.divergence.view(4, many).mean(1), -found.log_ratio.view(4, many)
    assert (divergence > 0).all()
    assert ((said.mean(1) - divergence).abs() < 5 * said.std(1) / many**0.5).all()


def test_the_loss_is_the_bound_in_bits(family):
    batch = next(stream("vdvae", start=2))  # when latents cost what they do
    losses = family.loss(family.nets["vdvae"], batch)
    bits = family.held_out_losses(batch.columns, batch.draws)
    assert losses["loss"].item() == pytest.approx(bits.mean().item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((losses["reconstruction"] + losses["kl"]).item(), rel=1e-6)
    rows, label = told(family)
    with torch.no_grad():
        closer = family.likelihood.log_probability(rows, label, Draws.of_seeds(torch.arange(4)))
        weights = family.log_weights(rows, label, Draws.of_seeds(torch.arange(4)), 16)
    assert bits_per_value(closer.mean(), 256) < bits_per_value(weights.mean(), 256)


def test_temperatures_quieten_latents_and_pixels(family):
    seeds, conditions = torch.tensor([1, 2]), Conditions(label=torch.tensor([1, 1]))
    usual = Request(seeds, family.Settings(), conditions)

    def spread(**settings) -> float:
        one, other = family.sample(replace(usual, settings=family.Settings(**settings)))
        return (one - other).abs().mean().item()

    assert spread(temperature=0, pixel_temperature=0) == 0
    assert spread(temperature=1, pixel_temperature=0) > 0 and spread(temperature=0, pixel_temperature=1) > 0
