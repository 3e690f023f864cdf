"""Samplers of tokens beyond the contract of all families: likelihoods that sum to one, kept rows that change nothing,
edits that keep what is known, guidance, texts, and all in one engine with the others."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from components.data.dataset import batches
from components.data.randomness import Draws
from components.errors import DataError, SamplerError
from components.families import family_class
from components.likelihood.contract import bits_figures
from components.sampling.engine import Engine
from components.sampling.requests import Conditions, Request, Source
from components.sampling.trajectories import drive
from tests.components.families.contract import co_batched, fast, request
from tests.components.helpers import CAPTION_LENGTH, IMAGES, LATENTS, TOKENS, Rows, build

pytestmark = pytest.mark.usefixtures("exact")

NAMES = ("gpt", "maskgit")
TEXT = {"conditioning": "text", "text_length": 12}
CAPTIONED = TOKENS.model_copy(update={"caption_length": CAPTION_LENGTH, "classes": ()})


def stirred(name: str, data=TOKENS, **changes):
    """A tiny sampler whose answers depend on all that it is told."""
    family = build(name, data=data, **changes)
    generator = torch.Generator().manual_seed(1)
    for parameter in family.nets["transformer"].parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    family.nets.requires_grad_(False).eval()
    return family


def tokens_of(family, asked: Request) -> torch.Tensor:
    """What the decoder is asked for."""
    seen = []
    calls = {**family.calls, "decoder": lambda tokens: seen.append(tokens) or family.calls["decoder"](tokens)}
    drive(family.trajectory(asked), calls)
    return seen[-1].flatten(1)


def test_probabilities_of_all_sequences_sum_to_one():
    three = TOKENS.model_copy(update={"shape": (1, 1, 3)})
    family = stirred("gpt", three)
    every = torch.tensor(list(itertools.product(range(12), repeat=3)))
    prefix = torch.full((len(every), 1), 12 + 2)
    losses = family.token_losses(every, prefix, Draws.of_seeds(torch.arange(len(every))))
    assert (-3 * losses.double()).exp().sum() == pytest.approx(1, abs=1e-5)


def test_what_is_drawn_with_kept_rows_is_what_the_whole_net_says():
    """Greedy, the next token is the likeliest given those before."""
    family = stirred("gpt")
    tokens = tokens_of(family, request(family, [3, 4, 5], top_k=1))
    prefix = 12 + torch.tensor([3, 4, 5])[:, None] % 3
    logits = family.nets["transformer"](torch.cat([prefix, tokens[:, :-1]], dim=1))
    assert torch.equal(logits.argmax(-1), tokens)
    assert len(tokens.unique()) > 1


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guidance_ramps_and_costs_rows_only_where_it_leads(scale):
    family, rows = stirred("gpt"), []
    asked = request(family, [1, 2], top_k=1, guidance_scale=scale)
    net = family.calls["transformer"]

    class Counted:
        row_bytes, allocate = net.row_bytes, staticmethod(net.allocate)

        def __call__(self, **inputs):
            rows.append(len(inputs["ids"]))
            return net(**inputs)

    drive(family.trajectory(asked), {**family.calls, "transformer": Counted()})
    assert set(rows) == {2 if scale == 1 else 4} and len(rows) == 64
    settings = family.Settings(guidance_scale=scale)
    assert settings.scale_at(63, 64) == scale
    assert settings.scale_at(0, 64) == pytest.approx(1 + (scale - 1) / 64)


def test_masked_steps_reveal_by_the_cosine_until_all_is_known():
    family, told = stirred("maskgit"), []
    untold = family.nets["transformer"].untold

    def net(ids):
        told.append((ids[:, 1:] == untold).sum(1).tolist())
        return family.nets["transformer"](ids)

    drive(family.trajectory(request(family, [1, 2], num_inference_steps=4)), {**family.calls, "transformer": net})
    expected = [64, *(math.floor(64 * math.cos(math.pi / 2 * step / 4)) for step in (1, 2, 3))]
    assert told == [[count] * 2 for count in expected]


def test_more_steps_than_tokens_still_end_with_all_known():
    family = stirred("maskgit", TOKENS.model_copy(update={"shape": (1, 2, 2)}))
    family.autoencoder.nets["autoencoder"].decode_tokens = lambda tokens: tokens  # the images' side is another
    tokens = tokens_of_small(family)
    assert tokens.max() < 12


def tokens_of_small(family) -> torch.Tensor:
    calls = {**family.calls, "decoder": lambda tokens: tokens[:, None].float() / 12}
    return (drive(family.trajectory(request(family, [1, 2], num_inference_steps=9)), calls) * 12).round().long()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_an_edit_keeps_the_tokens_and_pixels_outside_its_mask(name, share):
    family = stirred(name)
    images = torch.rand(2, *IMAGES.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :, 8:] = 1
    conditions = Conditions(label=torch.tensor([0, 1]), source=Source(images, share, mask))
    asked = Request(torch.tensor([5, 6]), family.Settings(**fast(name)), conditions)
    own = family.calls["tokeniser"](images).flatten(1)
    tokens = tokens_of(family, asked)
    changed = (tokens != own).view(2, 8, 8)
    assert not changed[..., :4].any() and changed[..., 4:].any()
    assert changed.flatten(1).sum(1).max() <= math.ceil(share * 32)
    edited = family.sample(asked)
    assert torch.equal(edited[..., :8], images[..., :8]) and not torch.equal(edited, images)
    other = family.sample(Request(torch.tensor([7, 6]), asked.settings, conditions))
    assert not torch.equal(other[0], edited[0]) and torch.allclose(other[1], edited[1], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_negative_classes_steer(name):
    family, seeds = stirred(name), torch.tensor([1, 1, 1])
    settings = family.Settings(**{**fast(name), "guidance_scale": 20.0, "temperature": 0.1})
    label, away = torch.tensor([0, 1, 0]), torch.tensor([2, 2, 1])
    tokens = tokens_of(family, Request(seeds, settings, Conditions(label=label, negative_label=away)))
    assert (tokens[0] != tokens[1]).any() and (tokens[0] != tokens[2]).any()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_guides_away_from_what_was_never_learned(name):
    family, label = stirred(name, label_dropout=0.0), torch.tensor([0, 1])

    def tokens(scale, **conditions):
        settings = family.Settings(**{**fast(name), "guidance_scale": scale, "temperature": 0.1})
        return tokens_of(family, Request(torch.tensor([1, 2]), settings, Conditions(label=label, **conditions)))

    assert torch.equal(tokens(1.0), tokens(20.0))
    assert not torch.equal(tokens(1.0), tokens(20.0, negative_label=torch.tensor([2, 2])))
    reason = family.unheard(family.config, family.Settings(guidance_scale=2.0), family.data.outline)
    assert reason.startswith("guidance_scale: this model is never trained without its class")
    assert family.unheard(family.config, family.Settings(), family.data.outline) is None


@pytest.mark.parametrize("name", NAMES)
def test_texts_steer_too_and_every_weight_learns(name):
    family = build(name, data=CAPTIONED, **TEXT)
    rows = Rows(CAPTIONED.model_copy(update={"classes": IMAGES.classes}))
    rows.columns.pop("label")
    rows.__class__ = type("Captioned", (Rows,), {"__len__": lambda self: 20})
    batch = next(batches(rows, 6))
    net = family.nets["transformer"]
    family.loss(net, batch)["loss"].backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert family.preview(rows.columns).shape == (20, *IMAGES.shape)
    family = stirred(name, CAPTIONED, **TEXT)
    settings = family.Settings(**fast(name))
    asked = Request(torch.tensor([1, 1]), settings, Conditions(prompt=("a red cat", "a dog")))
    together = tokens_of(family, asked)
    assert (together[0] != together[1]).any()
    assert torch.equal(tokens_of(family, asked.take([1]))[0], together[1])
    with pytest.raises(SamplerError, match="at most 12 bytes"):
        family.sample(Request(torch.tensor([1]), settings, Conditions(prompt=("a" * 13,))))


def test_other_views_are_learnt_from_and_not_measured_on():
    family, rows = build("gpt"), Rows(TOKENS)
    rows.columns["views"] = torch.full((20, 3, 8, 8), 11, dtype=torch.uint16)
    batch = next(batches(rows, 16))
    is_view = (family.training_tokens(batch) == 11).all(1)
    assert 0.4 < is_view.float().mean() < 1
    plain = family.held_out_losses({name: batch.columns[name] for name in ("tokens", "label")}, batch.draws)
    assert torch.equal(family.held_out_losses(batch.columns, batch.draws), plain)
    assert plain.shape == (16, 1)


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_token_of_a_net_that_knows_nothing_are_those_of_even_chances(name):
    family = build(name)
    torch.nn.init.zeros_(family.nets["transformer"].head.weight)
    images = torch.rand(20, *IMAGES.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = images, torch.arange(20) % 3
    figures = bits_figures(family.likelihood, rows, rows)
    assert figures["bits_per_token"].value == pytest.approx(math.log2(12), rel=1e-5)
    assert "bits_per_dim" not in figures and family.likelihood.kind == ("exact" if name == "gpt" else "bound")


def test_all_kinds_of_samplers_share_one_engine():
    samplers = {
        "gpt": stirred("gpt"),
        "maskgit": stirred("maskgit"),
        "latent_diffusion": build("latent_diffusion"),
        "dcgan": build("dcgan"),
    }
    for sampler in samplers.values():
        sampler.nets.eval()
    nets = {f"{name}/{net}": call for name, sampler in samplers.items() for net, call in sampler.calls.items()}

    def prefixed(name, seed):
        inner = samplers[name].trajectory(request(samplers[name], [seed, seed + 1], **fast(name)))
        answer = None
        while True:
            try:
                call = inner.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = yield dataclasses.replace(call, net=f"{name}/{call.net}", preview=None)

    engine = Engine(nets, buckets=(4, 8, 16))
    asked = [(name, seed) for seed in (3, 8) for name in samplers]
    futures = [engine.submit(lambda one=one: prefixed(*one), rows=4) for one in asked]
    for (name, seed), future in zip(asked, futures, strict=True):
        alone = samplers[name].sample(request(samplers[name], [seed, seed + 1], **fast(name)))
        assert torch.allclose(future.result(60), alone, atol=1e-4), name
    assert engine.load().kept == 0
    engine.stop(timeout=60)


@pytest.mark.parametrize("name", NAMES)
def test_requests_of_mixed_settings_together_are_those_alone(name):
    family = stirred(name)
    requests = [
        request(family, [1], temperature=0.7),
        request(family, [2, 3], guidance_scale=3.0, guidance_ramp="constant"),
        request(family, [4], top_k=2, guidance_scale=2.0),
        request(family, [5, 6], top_p=0.5),
    ]
    images, forwards = co_batched(family, requests)
    for asked, found in zip(requests, images, strict=True):
        assert torch.allclose(family.sample(asked), found, atol=1e-4)
    assert max(forward.num_calls for forward in forwards) > 1


@pytest.mark.parametrize("name", NAMES)
def test_data_that_do_not_fit_are_refused(name):
    kind = family_class(name)
    with pytest.raises(DataError, match=f"{name}: expected a data set of tokens, as encode.NAME.tokens"):
        kind(kind.Config(), LATENTS)
    with pytest.raises(DataError, match=f"{name}: expected labelled images"):
        kind(kind.Config(), TOKENS.model_copy(update={"classes": ()}))
    with pytest.raises(DataError, match=f"{name}: expected images with captions"):
        kind(kind.Config(conditioning="text"), TOKENS)
    with pytest.raises(ValueError, match="width must be divisible by four times the heads"):
        kind.Config(width=20, heads=4)
