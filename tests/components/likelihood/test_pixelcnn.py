"""PixelCNN++ against its definition: what depends on what, probabilities that sum to one, one pixel at a time."""

from __future__ import annotations

import itertools

import pytest
import torch

from components.data.info import DataInfo
from components.data.media import medium
from components.likelihood.logistics import conditional_means, draw, log_probability, mixture, num_outputs
from components.nets.pixelcnn import PixelCNN
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request, Source
from components.sampling.state import Cache
from tests.components.helpers import build

SHAPE = (2, 4, 5)


@pytest.fixture
def net():
    torch.manual_seed(1)
    return PixelCNN(SHAPE, outputs=3, width=6, blocks=2, num_classes=3).eval()


def test_a_pixel_depends_on_all_before_it_and_on_none_after(net):
    rows = torch.randn(1, *SHAPE, requires_grad=True)
    label = torch.tensor([2])
    _, height, width = SHAPE
    for place in range(height * width):
        answer = net(rows, label)[0, :, place // width, place % width].square().sum()
        (gradient,) = torch.autograd.grad(answer, rows)
        depends = gradient[0].abs().sum(0).flatten() > 0
        assert not depends[place:].any()
        near = [p for p in range(place) if place // width - p // width <= 2 and abs(place % width - p % width) <= 1]
        assert depends[near].all(), "no blind spot"


def test_one_pixel_at_a_time_equals_the_whole(net):
    rows, label = torch.randn(3, *SHAPE), torch.tensor([0, 1, 2])
    whole = net(rows, label)
    stepped, pixels = net.next, rows.flatten(2)
    cache = Cache(stepped, 3)
    slots = cache.lease(3)
    behind = torch.tensor([0, 3, 7])  # the rows are at different pixels of one call
    with torch.no_grad():
        for place in range(pixels.shape[2] + 7):
            at = place - behind
            live = ((at >= 0) & (at < pixels.shape[2])).nonzero()[:, 0]
            at = at[live]
            previous = pixels[live, :, (at - 1).clamp(min=0)]
            kept = cache.inputs(slots[live], 0, at)
            found = stepped(position=at, previous=previous, label=label[live], **kept)
            assert torch.allclose(found, whole.flatten(2)[live, :, at], atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_probabilities_of_a_pixel_sum_to_one(channels):
    levels, mixtures = {1: 17, 2: 7, 3: 5}[channels], 2
    torch.manual_seed(channels)
    numbers = torch.randn(1, num_outputs(channels, mixtures), 1, 1)
    grid = torch.linspace(-1, 1, levels).tolist()
    values = torch.tensor(list(itertools.product(grid, repeat=channels)))[:, :, None, None]
    found = log_probability(numbers.expand(len(values), -1, -1, -1), values, levels, mixtures)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_two_pixel_image_has_probabilities_that_sum_to_one(monkeypatch):
    family = build("pixelcnn", data=DataInfo(shape=(1, 1, 2)))
    family.levels = 6
    grid = torch.linspace(-1, 1, 6).tolist()
    rows = torch.tensor(list(itertools.product(grid, repeat=2))).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        found = family.likelihood.log_probability(rows, None, None)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_extreme_numbers_keep_a_finite_likelihood_and_gradient():
    numbers = (1e3 * torch.randn(4, num_outputs(3, 2), 2, 2)).requires_grad_()
    rows = torch.tensor([-1.0, 1.0, 0.0, 127 / 255])[:, None, None, None].expand(4, 3, 2, 2)
    found = log_probability(numbers, rows, 256, 2)
    assert found.isfinite().all()
    found.sum().backward()
    assert numbers.grad.isfinite().all()


def test_draws_follow_the_probabilities():
    levels, mixtures, count = 9, 2, 40_000
    torch.manual_seed(2)
    numbers = torch.randn(1, num_outputs(2, mixtures))
    drawn = draw(numbers.expand(count, -1), torch.rand(count, mixtures + 2), levels, mixtures, 1.0)
    grid = torch.linspace(-1, 1, levels)
    cells = ((drawn + 1) * (levels - 1) / 2).round().long()
    shares = torch.bincount(cells[:, 0] * levels + cells[:, 1], minlength=levels**2) / count
    values = torch.tensor(list(itertools.product(grid.tolist(), repeat=2)))[:, :, None, None]
    expected = log_probability(numbers[:, :, None, None].expand(levels**2, -1, -1, -1), values, levels, mixtures).exp()
    assert (shares - expected).abs().max() < 5 * (0.25 / count) ** 0.5


def test_later_channels_lean_on_earlier_ones():
    found = mixture(torch.randn(1, num_outputs(3, 1)), 3, 1)
    means = conditional_means(found, torch.tensor([[0.5, -0.25, 9.0]]))
    own, lean = found.means[0, 0], found.coefficients[0, 0]
    assert means[0, 0].tolist() == pytest.approx(
        [own[0].item(), (own[1] + lean[0] * 0.5).item(), (own[2] + lean[1] * 0.5 - lean[2] * 0.25).item()], abs=1e-6
    )


def test_what_is_masked_is_drawn_and_what_is_not_stays():
    sampler = build("pixelcnn")
    generator = torch.Generator().manual_seed(0)
    images = medium("image").quantised(2 * torch.rand(2, *sampler.data.shape, generator=generator) - 1)
    mask = torch.zeros(2, 1, *sampler.data.shape[1:])
    mask[:, :, 2:, 3:] = 1
    label, seeds = torch.tensor([0, 1]), torch.tensor([3, 4])

    def drawn(source: Source) -> torch.Tensor:
        return sampler.sample(Request(seeds, sampler.Settings(), Conditions(label=label, source=source)))

    found = drawn(Source(images, 1.0, mask))
    stays = mask.expand_as(images) == 0
    assert torch.allclose(found[stays], images[stays], atol=1e-6)
    assert (found - images).abs()[~stays].max() > 0.05
    lower = drawn(Source(images, 0.4))
    assert torch.allclose(lower[:, :, :3], images[:, :, :3], atol=1e-6)
    assert (lower - images)[:, :, 3:].abs().max() > 0.05


def test_requests_at_different_pixels_share_a_forward():
    sampler = build("pixelcnn")
    forwards = []
    engine = Engine(sampler.calls, on_forward=forwards.append)
    requests = [
        Request(torch.tensor([seed]), sampler.Settings(), Conditions(label=torch.tensor([seed % 3])))
        for seed in range(3)
    ]
    futures = [engine.submit(lambda request=request: sampler.trajectory(request)) for request in requests]
    images = [future.result(60) for future in futures]
    engine.stop(timeout=60)
    assert any(forward.rows > 1 for forward in forwards)
    for request, together in zip(requests, images, strict=True):
        assert torch.allclose(sampler.sample(request), together, atol=1e-4)
