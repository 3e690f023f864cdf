"""Likelihoods of families on images of two to four pixels of few values, where all images can be counted: probabilities
sum to one, bounds lie in order. PixelCNN++, transformers on tokens and WaveNets are counted beside their own tests."""

from __future__ import annotations

import itertools

import pytest
import torch

from components.autoencoding.variational import importance_bound
from components.data.info import DataInfo
from components.data.randomness import Draws
from components.families.base import Sampler
from tests.components.flows.test_flows import shaken
from tests.components.helpers import build

FLOWS = {"glow": {"scales": 1}, "realnvp": {"scales": 1}, "tarflow": {"patch": 1}}
BOUNDS = {
    "vae": {"reconstruction": "logistic", "kl_weight": 1.0, "widths": [4], "density": {"components": 2}},
    "vdvae": {"blocks": [2], "classes": False},
}


def every_image(shape: tuple[int, ...], count: int) -> torch.Tensor:
    """All images of `count` values."""
    grid = torch.linspace(-1, 1, count).tolist()
    size = torch.Size(shape).numel()
    return torch.tensor(list(itertools.product(grid, repeat=size))).reshape(-1, *shape)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_gives_all_images_what_it_draws_among_them(name):
    """The probabilities of all images sum to the mass between the outermost values' bins: a wrong determinant, or a bin
    of another width, would show."""
    shape, values, draws = (1, 2, 2), 3, 200
    family = build(name, data=DataInfo(shape=shape), **FLOWS[name])
    family.levels = values
    (net,) = family.nets.values()
    shaken(net, 0.1)
    rows = every_image(shape, values).repeat(draws, 1, 1, 1)
    with torch.no_grad():
        each = family.likelihood.log_probability(rows, None, Draws.of_seeds(torch.arange(len(rows))))
        found = each.exp().sum().item() / draws
        normal = Draws.of_seeds(torch.arange(len(rows)))
        if name == "tarflow":
            tokens = latents = normal.normal("z", (net.length, net.dim))
            for number in reversed(range(len(net.flows))):
                for _ in range(net.length):  # exact after as many rounds as there are tokens
                    log_scale, shift = net.flows[number].numbers(tokens, None)
                    tokens = latents * log_scale.exp() + shift
                latents = tokens = tokens.flip(1) if number else tokens
            drawn = net.rows(tokens)
        else:
            drawn = net.sample(**{f"z{n}": normal.normal(n, one) for n, one in enumerate(net.latent_shapes)})
    inside = (drawn.abs() <= 1).flatten(1).all(1).double().mean().item()
    assert inside > 0.05
    assert found == pytest.approx(inside, rel=0.05)


def toy(name: str) -> tuple[Sampler, torch.Tensor]:
    """A model of two pixels of five values, away from its beginning, and all their images."""
    shape, values = (1, 1, 2), 5
    family = build(name, data=DataInfo(shape=shape), **BOUNDS[name])
    family.levels = values
    for net in family.nets.values():
        shaken(net, 0.1)
    if name == "vdvae":  # near the prior, or a few weights are nearly all of the mean
        with torch.no_grad():
            for block in family.nets["vdvae"].levels[0]:
                block.posterior.convs[-1].weight.mul_(0.3)
                block.posterior.convs[-1].bias.mul_(0.1)
    family.nets.eval()
    return family, every_image(shape, values)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_lie_in_order_below_probabilities_that_sum_to_one(name, monkeypatch):
    """The mean of many weights p(x, z) / q(z | x) is p(x) itself, whatever the posterior."""
    monkeypatch.setattr("components.families.vae.levels", lambda medium: 5)
    family, rows = toy(name)
    many = 2000
    with torch.no_grad():
        draws = Draws.of_seeds(torch.arange(many * len(rows)))
        weights = family.log_weights(rows.repeat_interleave(many, 0), None, draws, 1).double().view(len(rows), many)
    exact = importance_bound(weights)
    assert exact.exp().sum().item() == pytest.approx(1, rel=0.03)
    elbo = weights.mean(1)  # of one weight, over many draws
    few = importance_bound(weights.reshape(-1, 10)).reshape(len(rows), -1).mean(1)
    assert (elbo < few).all() and (few < exact).all()
