"""Draws of tokens: truncation by hand, ties, and frequencies that are the probabilities."""

from __future__ import annotations

import pytest
import torch

from components.data.randomness import Draws
from components.sampling.batching import packed
from components.sampling.trajectories import Call
from components.tokens.draws import DrawSettings, RowDraws, descending, drawn, guided, gumbel, truncated

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


def test_the_order_is_torchs_stable_one():
    logits = torch.randn(7, 300, generator=torch.Generator().manual_seed(0)).mul(4).round() / 2
    logits[0, :200:3], logits[0, 1:200:3], logits[1, ::7], logits[2] = 0.0, -0.0, -torch.inf, 1.0
    logits[3, ::5], logits[4, ::9] = logits[3, ::5] * 1e-40, torch.inf
    for given in (logits, logits[0], logits[:, ::2], logits.reshape(7, 3, 100)):
        expected = torch.sort(given, dim=-1, descending=True, stable=True)
        assert all(map(torch.equal, descending(given), expected))


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


MIXED = (
    {},
    {"temperature": 0.7},
    {"top_k": 2},
    {"top_p": 0.9},
    {"top_k": 5, "top_p": 0.6, "temperature": 1.7},
    {"guidance_scale": 3.0, "top_p": 0.8},
    {"guidance_scale": 0.0},
    {"guidance_scale": 2.5, "guidance_ramp": "constant", "temperature": 0.3, "top_k": 1},
)


def row_draws(place: int, seeds: torch.Tensor, settings: DrawSettings) -> dict[str, torch.Tensor]:
    """Inputs of the rows of a request for the token `place` of 8."""
    is_guided = settings.guidance_scale != 1
    rows = len(seeds) * (1 + is_guided)
    key = Draws.of_seeds(seeds).folds([f"token {place}"])[:, 0].repeat(1 + is_guided)
    scale = torch.tensor(settings.scale_at(place, 8)).expand(rows)
    return {"key": key, "scale": scale} | RowDraws.constant(settings, len(seeds), is_guided)


@pytest.mark.parametrize("padding", [0, 5])
def test_requests_of_mixed_settings_in_one_call_draw_what_each_draws_alone(padding):
    """Bit for bit, with logits that tie, and as the settings of one request say."""
    generator = torch.Generator().manual_seed(0)
    calls, alone, every = [], [], []
    for number, options in enumerate(MIXED):
        settings, seeds = DrawSettings(**options), torch.arange(3) + 10 * number
        inputs = row_draws(5, seeds, settings)
        logits = (3 * torch.randn(len(inputs["key"]), 40, generator=generator)).round()
        led = guided(*logits.chunk(2), settings.scale_at(5, 8)) if len(logits) > 3 else logits
        noise = gumbel(Draws.of_seeds(seeds).uniform("token 5", (40,)))
        expected = drawn(truncated(led, settings), noise).repeat(len(logits) // 3)
        assert torch.equal(RowDraws(**inputs).tokens(logits), expected)
        calls.append(Call("net", inputs))
        alone.append(expected)
        every.append(logits)
    logits = torch.cat([*every, every[-1][-1:].expand(padding, -1)])
    tokens = RowDraws(**packed(calls, padding)).tokens(logits)
    assert torch.equal(tokens[: len(tokens) - padding], torch.cat(alone))
    assert len(tokens) == len(logits)
