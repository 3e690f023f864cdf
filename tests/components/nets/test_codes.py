"""Codebooks: what numbers of codes mean, and that the decoder of tokens sees what training saw."""

from __future__ import annotations

import itertools

import pytest
import torch

from components.metrics.codes import code_counts, perplexity, usage
from components.nets.autoencoder import AutoencoderKL
from components.nets.autoencoder.codebook import Codebook
from components.nets.autoencoder.finite_scalars import FiniteScalars


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("levels", [(3,), (5,), (8,), (8, 6, 5), (3, 7, 4)])
def test_every_combination_of_levels_is_a_code_and_its_own_number(levels):
    quantiser = FiniteScalars(levels)
    numbers = torch.arange(quantiser.size)
    codes = quantiser.codes_of(numbers[:, None, None])
    expected = [
        [(level - count // 2) / (count // 2) for level, count in zip(combination, levels, strict=True)]
        for combination in itertools.product(*map(range, levels))
    ]
    found = sorted(codes.flatten(1).tolist())
    assert torch.allclose(torch.tensor(found), torch.tensor(sorted(expected)))


@pytest.mark.parametrize("levels", [(3,), (4,), (8, 6, 5)])
def test_latents_far_and_near_reach_every_level_and_no_other(levels):
    quantiser = FiniteScalars(levels)
    latents = torch.linspace(-9, 9, 4001).view(-1, 1, 1, 1).expand(-1, len(levels), 1, 1)
    codes = quantiser(latents)
    for channel, count in enumerate(levels):
        values = codes[:, channel].flatten().unique()
        assert len(values) == count and values.min() == -1
        assert values.max() == pytest.approx((count - 1 - count // 2) / (count // 2))
    numbers = quantiser.tokens(latents)
    assert torch.allclose(quantiser.codes_of(numbers), codes, atol=1e-6)
    assert (codes[:, 0].flatten().diff() >= -1e-6).all(), "rounding keeps the order"


def test_gradients_go_around_the_rounding():
    quantiser, latents = FiniteScalars((8, 5)), torch.randn(2, 2, 3, 3, requires_grad=True)
    quantiser(latents).sum().backward()
    with torch.no_grad():
        slope = (1 - (latents + quantiser.shift).tanh() ** 2) * quantiser.reach / quantiser.radius
    assert torch.allclose(latents.grad, slope, atol=1e-6)


def test_halves_are_rounded_to_even_whatever_the_autocast():
    quantiser, latents = FiniteScalars((8, 5)), torch.randn(64, 2, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantiser(latents), quantiser(latents.float()))
    assert torch.tensor([0.5, 1.5, -0.5]).round().tolist() == [0, 2, 0]


@pytest.mark.parametrize("book", ["plain", "normalised", "fsq"])
def test_the_decoder_of_tokens_sees_what_training_saw(book):
    codebook = FiniteScalars((8, 5)) if book == "fsq" else Codebook(16, 2, 0.9, 0.0, normalised=book == "normalised")
    net = AutoencoderKL(1, 2, (4, 8), 1, codebook).eval()
    images = torch.randn(3, 1, 8, 8)
    seen = net(images, torch.zeros(3, 2, 4, 4))
    tokens = net.tokens(images)
    assert tokens.shape == (3, 4, 4) and tokens.dtype == torch.int64
    assert torch.allclose(codebook.codes_of(tokens), seen.latents, atol=1e-6)
    assert torch.allclose(net.decode_tokens(tokens), seen.images, atol=1e-5)
    assert torch.allclose(net.decode(seen.mean), seen.images, atol=1e-5)


def test_a_normalised_codebook_matches_by_angle_and_stays_on_the_sphere():
    codebook = Codebook(8, 3, decay=0.5, restart_below=0.0, normalised=True).train()
    latents = torch.randn(4, 3, 5, 5)
    assert torch.equal(codebook.tokens(latents), codebook.tokens(7 * latents))
    codebook(latents.requires_grad_())
    assert torch.allclose(codebook.codes.norm(dim=1), torch.ones(8))
    assert torch.allclose(codebook(latents).norm(dim=1), torch.ones(4, 5, 5), atol=1e-5)
    codebook.commitment(latents, codebook.tokens(latents)).backward()
    assert latents.grad.abs().max() > 0


def test_half_precision_takes_the_same_codes():
    codebook, latents = Codebook(64, 4, 0.9, 0.0), torch.randn(4, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.tokens(latents), codebook.tokens(latents.clone()))
        inside = codebook.tokens(latents)
    assert torch.equal(inside, codebook.tokens(latents))


def test_fingerprints_tell_codebooks_apart():
    one, other = Codebook(8, 3, 0.5, 0.0), Codebook(8, 3, 0.5, 0.0)
    found = {book.fingerprint() for book in (one, other, FiniteScalars((8, 5)), FiniteScalars((5, 8)))}
    assert len(found) == 4 and one.fingerprint() == one.fingerprint()


def test_usage_and_perplexity_by_hand():
    counts = code_counts(torch.tensor([[0, 0, 2], [2, 5, 5]]), 8)
    assert counts.tolist() == [2, 0, 2, 0, 0, 2, 0, 0]
    assert usage(counts) == pytest.approx(3 / 8) and perplexity(counts) == pytest.approx(3)
    assert perplexity(torch.tensor([4, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([1, 1, 2])) == pytest.approx(2**1.5)
