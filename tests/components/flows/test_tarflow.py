"""TarFlow against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from components.data.info import DataInfo
from components.errors import SamplerError
from components.sampling.requests import Conditions, Request
from tests.components.flows.test_flows import jacobian_logdet, shaken
from tests.components.helpers import build

SMALL = DataInfo(shape=(1, 4, 4), classes=("a", "b"))


@pytest.fixture
def family():
    family = build("tarflow", data=SMALL)
    shaken(family.nets["tarflow"], 0.1)
    return family


def rows(count: int = 2) -> torch.Tensor:
    return 1.8 * torch.rand(count, *SMALL.shape, generator=torch.Generator().manual_seed(1)) - 0.9


def test_each_flow_is_triangular_in_its_order(family):
    flow = family.nets["tarflow"].flows[0]
    tokens, label = torch.randn(1, 4, 4), torch.tensor([1])
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None], label)[0][0], tokens[0])
    for place in range(4):
        assert not jacobian[place, :, place + 1 :].any(), "a token depends on those before it alone"
        own = jacobian[place, :, place]
        assert torch.allclose(own, torch.diag(own.diagonal()), atol=1e-6)
        assert place == 0 or jacobian[place, :, :place].abs().sum() > 0


def test_the_density_is_that_of_the_change_of_variables(family):
    net, label = family.nets["tarflow"].double(), torch.tensor([0, 1])
    x = rows().double()
    z, _ = net.encode(x, label)
    normal = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    expected = torch.cat(
        [jacobian_logdet(lambda one, n=n: net.encode(one, label[n : n + 1])[0], x[n : n + 1]) for n in range(2)]
    )
    assert torch.allclose(net(x, label).double(), normal + expected, atol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_jacobi_iterations_end_where_token_by_token_does(family, guidance_scale):
    request = Request(torch.tensor([3, 8]), family.Settings(), Conditions(label=torch.tensor([0, 1])))
    by_token, by_jacobi = (
        family.sample(Request(request.seeds, family.Settings(guidance_scale=guidance_scale, **how), request.conditions))
        for how in ({}, {"jacobi": 1e-6})
    )
    assert torch.allclose(by_token, by_jacobi, atol=1e-4)


def test_samples_are_the_inverse_of_their_latents(family):
    label = torch.tensor([0, 1])
    request = Request(torch.tensor([3, 8]), family.Settings(temperature=0.5), Conditions(label=label))
    net = family.nets["tarflow"]
    latents = family._latents(request)
    with torch.no_grad():
        tokens = latents
        for number in reversed(range(len(net.flows))):
            for _ in range(net.length):  # exact after as many rounds as there are tokens
                log_scale, shift = net.flows[number].numbers(tokens, label)
                tokens = latents * log_scale.exp() + shift
            latents = tokens = tokens.flip(1) if number else tokens
        again, _ = net.encode(net.rows(tokens), label)
    assert torch.allclose(again, family._latents(request), atol=1e-4)


def test_noise_is_taken_off_by_the_score_and_leaves_no_likelihood():
    family = build("tarflow", data=SMALL, noise=0.1)
    net = shaken(family.nets["tarflow"], 0.1)
    assert family.likelihood is None
    x, label = rows(), torch.tensor([0, 1])
    noisy = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(net(noisy, label).sum(), noisy)
    with torch.inference_mode():
        found = family.calls["denoise"](rows=x, label=label)
    assert torch.allclose(found, x + 0.01 * score, atol=1e-5)


def test_guidance_needs_rows_without_their_class():
    family = build("tarflow", label_dropout=0.0)
    request = Request(torch.tensor([1]), family.Settings(guidance_scale=2), Conditions(label=torch.tensor([0])))
    with pytest.raises(SamplerError, match="^guidance_scale: this model was not trained without classes"):
        family.trajectory(request)


@pytest.mark.parametrize("jacobi", [None, 1e-3])
def test_without_classes_nothing_guides(jacobi):
    family = build("tarflow", data=DataInfo(shape=(1, 6, 8)))

    def sample(scale: float) -> torch.Tensor:
        return family.sample(Request(torch.tensor([1, 2]), family.Settings(guidance_scale=scale, jacobi=jacobi)))

    assert torch.equal(sample(2.0), sample(1.0))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(SamplerError, match="tarflow: width: 10 is no multiple of twice the 4 heads"):
        build("tarflow", width=10, heads=4)
