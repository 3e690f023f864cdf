"""Bits per dimension of any model that has a likelihood."""

from __future__ import annotations

import math

import pytest
import torch

from components.data.media import medium
from components.data.randomness import Draws
from components.families import family_class, family_names
from components.families.base import Sampler
from components.likelihood.contract import Likelihood, bits_figures
from components.metrics.held_out import DENOISING
from tests.components.helpers import Rows, build, tiny_data

CONFIGS = {"vae": {"reconstruction": "logistic"}}  # of families that have a likelihood by their config alone
WITH_LIKELIHOOD = [
    name
    for name in family_names()
    if issubclass(family_class(name), Sampler) and build(name, **CONFIGS.get(name, {})).likelihood is not None
]


def likelihood_of(name: str) -> Likelihood:
    return build(name, **CONFIGS.get(name, {})).likelihood


def test_the_families_that_say_so_have_one():
    assert set(WITH_LIKELIHOOD) >= {"glow", "pixelcnn", "realnvp", "tarflow", "vae", "vdvae", "latent_diffusion"}


def rows_of(name: str, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as a user sees them, also of a model that works on what an autoencoder makes of them."""
    data = tiny_data(name)
    data = data if data.autoencoder is None else data.autoencoder.data
    columns = Rows(data, count).columns
    return medium(data.medium).rows(columns), columns["label"]


@pytest.mark.parametrize("name", WITH_LIKELIHOOD)
def test_a_row_has_the_same_likelihood_alone_and_among_others(name):
    likelihood = likelihood_of(name)
    rows, label = rows_of(name, 2 if likelihood.most_rows else 6)  # few where a row takes many evaluations
    draws = torch.arange(len(rows))
    with torch.no_grad():
        whole = likelihood.log_probability(rows, label, Draws.of_seeds(draws))
        for place in range(len(rows)):
            part = slice(place, place + 1)
            alone = likelihood.log_probability(rows[part], label[part], Draws.of_seeds(draws[part]))
            assert alone.item() == pytest.approx(whole[place].item(), rel=1e-5)


@pytest.mark.parametrize("name", WITH_LIKELIHOOD)
def test_bits_are_told_of_held_out_and_of_training_rows(name):
    likelihood, (rows, label) = likelihood_of(name), rows_of(name, 4)
    found = bits_figures(likelihood, (rows, label), (rows[:3], label[:3]))
    held_out, train, gap = found.values()
    unit = "token" if likelihood.tokens else "latent" if likelihood.latents else "dim"
    expected = f"bits_per_{unit}"
    assert (held_out.name, train.name) == (expected, f"{expected}_train")
    low, high = held_out.interval
    assert low <= held_out.value <= high
    assert gap.value == pytest.approx(held_out.value - train.value)
    assert held_out.definition.cost(2.0) == 2.0, "lower is better"


def test_a_uniform_model_needs_as_many_bits_as_are_stored():
    uniform = Likelihood("exact", "none", lambda rows, label, draws: torch.full((len(rows),), -4 * math.log(256)))
    rows = torch.zeros(5, 1, 2, 2), None
    assert bits_figures(uniform, rows, rows)["bits_per_dim"].value == pytest.approx(8)


@pytest.mark.parametrize("name", [name for name in WITH_LIKELIHOOD if family_class(name).held_out is not DENOISING])
def test_checkpoints_are_measured_in_bits(name):
    """The same rows have the same bits at every look, and a gap is theirs less those of training rows."""
    family, columns = build(name, **CONFIGS.get(name, {})), Rows(tiny_data(name), 6).columns
    assert family.held_out.kind == "likelihood"
    draws = Draws.of_seeds(torch.arange(6))
    with torch.no_grad():
        found = family.held_out_losses(columns, draws)
        assert torch.equal(family.held_out_losses(columns, draws), found)
    assert found.shape == (6, 1) and (found > 0).all()
