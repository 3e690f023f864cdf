"""Draws of tokens: truncation by hand, ties, and frequencies that are the probabilities."""

from __future__ import annotations

import pytest
import torch

from components.data.randomness import Draws
from components.tokens.draws import DrawSettings, drawn, guided, gumbel, truncated

LOGITS = torch.tensor([0.5, 0.2, 0.2, 0.06, 0.04]).log()


def left(**settings) -> list[int]:
    return truncated(LOGITS, DrawSettings(**settings)).isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 1]),  # of two that are equally likely the first
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.1}, [0]),
        ({"top_p": 0.69}, [0, 1]),
        ({"top_p": 0.89}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.6}, [0, 1]),  # 0.5 of 0.9 is less than 0.6
        ({"top_p": 0.6, "temperature": 0.1}, [0]),
    ],
)
def test_what_is_left_of_the_likeliest(settings, expected):
    assert left(**settings) == expected


def test_order_of_tokens_does_not_matter_but_for_ties():
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    plain = truncated(LOGITS, DrawSettings(top_p=0.95))
    assert torch.equal(truncated(LOGITS[order], DrawSettings(top_p=0.95)), plain[order])
    rows = truncated(torch.stack([LOGITS, LOGITS.flip(0)]), DrawSettings(top_k=1))
    assert rows.isfinite().nonzero()[:, 1].tolist() == [0, 4]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_probabilities_and_a_key_decides(temperature):
    draws = Draws.of_seeds(torch.arange(20000))
    logits = truncated(LOGITS, DrawSettings(temperature=temperature, top_p=0.97))
    tokens = drawn(logits.expand(20000, 5), gumbel(draws.uniform("token 3", (5,))))
    found = torch.bincount(tokens, minlength=5) / 20000
    assert torch.allclose(found, logits.softmax(0), atol=0.015)
    assert found[~logits.isfinite()].sum() == 0
    alone = drawn(logits.expand(1, 5), gumbel(Draws.of_seeds(torch.tensor([77])).uniform("token 3", (5,))))
    assert alone[0] == tokens[77]


def test_noise_is_finite_at_both_ends():
    ends = torch.tensor([2.0**-24, 1 - 2.0**-24])
    assert gumbel(ends).isfinite().all() and gumbel(ends)[0] < 0 < gumbel(ends)[1]


def test_guidance_leads_from_the_untold_through_the_told():
    told, untold = torch.randn(2, 5)
    assert torch.allclose(guided(told, untold, 1.0), told) and torch.allclose(guided(told, untold, 0.0), untold)
    assert torch.allclose(guided(told, untold, 3.0) - told, 2 * (told - untold), atol=1e-6)
