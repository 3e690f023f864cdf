"""Quantisation scale by scale: against the sums by hand, and what tokens mean whatever their company."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from components.autoencoding.codebooks import ScalesConfig
from components.errors import SamplerError
from components.nets.autoencoder import AutoencoderKL
from components.nets.autoencoder.codebook import Codebook
from components.nets.autoencoder.scales import Scales

SIDES, SIZE = (1, 2, 4), 16


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def quantiser(**changes) -> Scales:
    return Scales(Codebook(**{"size": SIZE, "channels": 3, "decay": 0.5, "restart_below": 0.0, **changes}), SIDES)


def said(scales: Scales, tokens: torch.Tensor, number: int) -> torch.Tensor:
    """A grid (B, side, side) by itself."""
    wide = F.interpolate(scales.codebook.codes[tokens].movedim(-1, 1), (4, 4), mode="bicubic")
    return 0.5 * wide + 0.5 * scales.blend[number](wide)


def test_figures_tell_the_grids_apart():
    parts = quantiser().parts(torch.arange(21)[None])
    assert {name: part[0].tolist() for name, part in parts.items()} == {
        "_1x1": [0],
        "_2x2": [1, 2, 3, 4],
        "_4x4": list(range(5, 21)),
    }


@torch.no_grad()
def test_each_grid_says_what_the_coarser_ones_left():
    scales, latents = quantiser().eval(), torch.randn(2, 3, 4, 4)
    rest, total, expected = latents, torch.zeros_like(latents), []
    for number, side in enumerate(SIDES):
        low = F.adaptive_avg_pool2d(rest, side)
        tokens = torch.cdist(low.movedim(1, -1).flatten(0, 2), scales.codebook.codes).argmin(1).view(2, side, side)
        total = total + said(scales, tokens, number)
        rest = latents - total
        expected.append(tokens.flatten(1))
    found = scales.tokens(latents)
    assert found.shape == (2, 21) and torch.equal(found, torch.cat(expected, dim=1))
    for sums in (scales.codes_of(found), scales.nearest(latents), scales(latents)):
        assert torch.allclose(sums, total, atol=1e-5)
    assert torch.equal(scales.tokens(latents[1:])[0], found[1]), "alone as in a batch"


def test_what_a_token_is_told_are_coarser_grids_alone():
    scales, tokens = quantiser(), torch.randint(SIZE, (1, 21))
    told = scales.told(tokens)
    assert told.shape == (1, 21, 3) and not told[:, 0].any()
    first = said(scales, tokens[:, :1].view(1, 1, 1), 0)
    assert torch.allclose(told[:, 1:5], F.adaptive_avg_pool2d(first, 2).flatten(2).transpose(1, 2), atol=1e-6)
    both = first + said(scales, tokens[:, 1:5].view(1, 2, 2), 1)
    assert torch.allclose(told[:, 5:], both.flatten(2).transpose(1, 2), atol=1e-6)
    changed = tokens.clone()
    changed[:, 5:] = SIZE
    assert torch.equal(scales.told(changed), told), "the finest says nothing to any"
    assert torch.allclose(scales.codes_of(changed), both, atol=1e-6), "grids that are not known add nothing"
    assert not scales.codes_of(torch.full_like(tokens, SIZE)).any()


def test_gradients_go_around_the_codes_and_into_what_blends_them():
    scales, latents = quantiser().train(), torch.randn(2, 3, 4, 4, requires_grad=True)
    weight, before = torch.randn(2, 3, 4, 4), scales.codebook.codes.clone()
    (scales(latents) * weight).sum().backward()
    assert torch.allclose(latents.grad, weight)
    assert all(parameter.grad.abs().max() > 0 for parameter in scales.parameters())
    assert not torch.equal(scales.codebook.codes, before), "codes follow what was asked of them"
    latents.grad = None
    scales.zero_grad()
    scales.commitment(latents, scales.tokens(latents)).backward()
    assert latents.grad.abs().max() > 0 and all(parameter.grad is None for parameter in scales.parameters())


def test_training_brings_codes_to_what_they_stand_for():
    scales, latents = quantiser(restart_below=0.03).train(), torch.randn(16, 3, 4, 4)
    first = scales.commitment(latents, scales.tokens(latents))
    for _ in range(30):
        scales(latents.requires_grad_())
    assert scales.commitment(latents, scales.tokens(latents)) < 0.7 * first


@pytest.mark.parametrize("sides", [SIDES, (4,)])
def test_the_decoder_of_tokens_sees_what_training_saw(sides):
    scales = Scales(Codebook(SIZE, 2, 0.9, 0.0), sides)
    net = AutoencoderKL(1, 2, (4, 8), 1, scales).eval()
    images = torch.randn(3, 1, 8, 8)
    seen, tokens = net(images, torch.zeros(3, 2, 4, 4)), net.tokens(images)
    assert tokens.shape == (3, sum(side**2 for side in sides)) and tokens.dtype == torch.int64
    assert torch.allclose(scales.codes_of(tokens), seen.latents, atol=1e-6)
    assert torch.allclose(net.decode_tokens(tokens), seen.images, atol=1e-5)
    assert torch.allclose(net.decode(seen.mean), seen.images, atol=1e-5)


def test_half_precision_takes_the_same_codes():
    scales, latents = quantiser().eval(), torch.randn(8, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scales.tokens(latents), quantised_outside(scales, latents))
        assert scales(latents).dtype == torch.float32


def quantised_outside(scales: Scales, latents: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return scales.tokens(latents)


def test_a_mask_marks_every_cell_that_it_touches():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 7, 0] = 1
    assert quantiser().cells(mask, (1, 21)).nonzero()[:, 1].tolist() == [0, 3, 17]


def test_fingerprints_tell_grids_codes_and_blends_apart():
    one, other = quantiser(), quantiser()
    cut = Scales(one.codebook, (1, 4))
    assert len({one.fingerprint(), other.fingerprint(), cut.fingerprint()}) == 3
    assert one.fingerprint() == one.fingerprint()


def test_grids_that_do_not_fit_are_refused():
    config = ScalesConfig(name="scales", sides=(1, 4))
    assert config.token_shape((3, 4, 4)) == (1, 17)
    for latents in ((3, 8, 8), (3, 4, 5)):
        with pytest.raises(SamplerError, match=r"codebook.sides: .*the last of them 4, found latents of"):
            config.token_shape(latents)
    with pytest.raises(ValueError, match="expected ever larger grids"):
        ScalesConfig(name="scales", sides=(2, 2))
