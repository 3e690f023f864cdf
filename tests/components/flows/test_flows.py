"""Flows against their definition: an exact inverse, and a density by the change of variables."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from components.data.info import DataInfo
from components.data.media import medium
from components.data.randomness import Draws
from components.likelihood.dequantise import dequantised, indices, levels, log_bin_volume, on_grid
from components.nets.flows.layers import (
    ActNorm,
    CheckerboardCoupling,
    Coupling,
    InvertibleConv,
    Logit,
    Squeeze,
)
from tests.components.helpers import IMAGES, build, stream

FLOWS = ["glow", "realnvp"]
SMALL = DataInfo(shape=(1, 4, 4), classes=("a", "b"))
LAYERS = {
    "actnorm": lambda: ActNorm(4),
    "conv": lambda: InvertibleConv(4),
    "coupling": lambda: Coupling(4, 6, 2),
    "coupling by its last": lambda: Coupling(3, 6, 2, blocks=1, keeps_first=False),
    "checkerboard": lambda: CheckerboardCoupling(4, 6, 2, 1, parity=1),
    "squeeze": Squeeze,
    "logit": lambda: Logit(0.05),
}


def shaken(module: torch.nn.Module, spread: float = 0.2) -> torch.nn.Module:
    """Weights away from the identity that layers begin as."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return module


def rows(shape: tuple[int, ...], count: int = 3) -> torch.Tensor:
    return 2 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(5)) - 1


def jacobian_logdet(function, x: torch.Tensor) -> torch.Tensor:
    found = []
    for row in x:
        matrix = torch.autograd.functional.jacobian(lambda one: function(one[None])[0].flatten(), row)
        found.append(torch.linalg.slogdet(matrix.reshape(row.numel(), -1)).logabsdet)
    return torch.stack(found)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_inverted_and_tells_its_determinant(name):
    torch.manual_seed(0)
    channels = 3 if name == "coupling by its last" else 4
    layer, x, label = shaken(LAYERS[name]()), rows((channels, 4, 4)), torch.tensor([0, 1, 1])
    y, logdet = layer(x, label)
    assert torch.allclose(layer.inverse(y, label), x, atol=1e-5)
    expected = jacobian_logdet(lambda one: layer(one, label[:1])[0], x[:1])
    assert torch.allclose(logdet[:1], expected, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_the_density_is_that_of_the_change_of_variables(name):
    family = build(name, data=SMALL, scales=1)
    net = shaken(family.nets["flow"], 0.1).double()
    x, label = rows(SMALL.shape, 2).double(), torch.tensor([0, 1])

    def latents(row: torch.Tensor, number: int) -> torch.Tensor:
        return torch.cat([z.flatten(1) for z in net.encode(row, label[number : number + 1])[0]], 1)

    for number in range(2):
        one = x[number : number + 1]
        z = latents(one, number)
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum()
        expected = normal + jacobian_logdet(lambda row, number=number: latents(row, number), one)[0]
        assert net(one, label[number : number + 1]).item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_samples_are_the_exact_inverse_of_latents(name):
    family = build(name)
    net = shaken(family.nets["flow"], 0.05)
    x, label = 0.9 * rows(IMAGES.shape), torch.tensor([0, 1, 2])
    latents, _ = net.encode(x, label)
    again = net.sample(label=label, **{f"z{number}": z for number, z in enumerate(latents)})
    assert torch.allclose(again, x, atol=1e-4)


def test_activation_norms_begin_with_the_first_batch_whole():
    family = build("glow")
    batch = next(stream("glow", 12))
    family.begin(lambda: batch)
    x = family._continuous(batch)
    for layer in family.nets["flow"].scales[0][:2]:
        x, _ = layer(x, batch.columns["label"])
    assert x.mean((0, 2, 3)).abs().max() < 1e-4
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    begun = family.loss(family.nets["flow"], batch)["loss"].item()
    assert begun < build("glow").loss(build("glow").nets["flow"], batch)["loss"].item(), "a better start than none"


def test_a_density_of_bins_sums_to_one():
    """Two pixels of few levels: probabilities of all pairs, each the integral of its bin, sum to what lies inside; a
    forgotten scale is off by log2(levels / 2) bits a pixel: 7 of 256."""
    count, grid = 4, 24
    edges = torch.linspace(-1, 1, count * grid * 2 + 1)[1::2]  # midpoints of a fine grid
    x = torch.tensor(list(itertools.product(edges.tolist(), repeat=2))).reshape(-1, 1, 1, 2)
    density = torch.exp(-0.5 * ((x / 0.3) ** 2).flatten(1).sum(1)) / (2 * math.pi * 0.09)
    whole = (density * (2 / (count * grid)) ** 2).sum()
    assert whole == pytest.approx(1, abs=2e-3)
    # the mean over a bin, times its volume, is the bin's probability
    cells = torch.floor((x.flatten(1) + 1) * count / 2).long()
    number = cells[:, 0] * count + cells[:, 1]
    means = torch.zeros(count**2).index_add(0, number, density) / torch.bincount(number, minlength=count**2)
    probabilities = means.log() + log_bin_volume(2, count)
    assert probabilities.exp().sum() == pytest.approx(1, abs=2e-3)
    assert log_bin_volume(1, 256) / math.log(2) == pytest.approx(-7)


def test_dequantised_values_come_back_as_what_is_stored():
    images = medium("image")
    stored = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    values = dequantised(images.to_floats(stored), Draws.of_seeds(torch.arange(4)), levels(images))
    assert values.min() > -1 and values.max() < 1
    assert torch.equal(images.to_stored(on_grid(values, 256)), stored)
    assert torch.equal(indices(images.to_floats(stored), 256), stored.float())
