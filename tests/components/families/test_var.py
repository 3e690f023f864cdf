"""Next-scale prediction beyond the contract of all families and of token samplers."""

from __future__ import annotations

import itertools

import pytest
import torch

from components.data.info import AutoencoderInfo, DataInfo
from components.data.randomness import Draws
from components.errors import DataError
from components.families import vae
from components.sampling.requests import Conditions, Request, Source
from components.sampling.trajectories import drive
from tests.components.families.contract import co_batched, request
from tests.components.families.test_token_samplers import stirred, tokens_of
from tests.components.helpers import CAPTION_LENGTH, IMAGES, TOKENS, tiny_data

pytestmark = pytest.mark.usefixtures("exact")

DATA = tiny_data("var")
COUNTS = (1, 4, 64)


def small() -> DataInfo:
    """Five tokens of three codes."""
    images = DataInfo(shape=(1, 4, 4), classes=IMAGES.classes)
    config = vae.Config(**vae.TINY.config, codebook={"name": "scales", "sides": (1, 2), "size": 3})
    of = AutoencoderInfo(config=config.model_dump(mode="json"), data=images)
    return DATA.model_copy(update={"shape": (1, 5), "autoencoder": of})


def test_probabilities_of_all_sequences_sum_to_one():
    family = stirred("var", small())
    every = torch.tensor(list(itertools.product(range(3), repeat=5)))
    losses = family.token_losses(every, torch.full((len(every), 1), 3 + 1), Draws.of_seeds(torch.arange(len(every))))
    assert losses.std() > 0.05
    assert (-5 * losses.double()).exp().sum() == pytest.approx(1, abs=1e-5)


def test_a_grid_is_told_by_coarser_grids_alone():
    family, tokens = stirred("var", DATA), torch.randint(12, (2, 69), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([torch.tensor([[12], [13]]), tokens], dim=1)
    plain = family.calls["transformer"](ids)
    for start, count in ((1, 4), (5, 64)):
        changed = ids.clone()
        changed[:, 1 + start : 1 + start + count] = (changed[:, 1 + start : 1 + start + count] + 1) % 12
        answer = family.calls["transformer"](changed)
        assert torch.equal(answer[:, : start + count], plain[:, : start + count])
    assert torch.equal(family.calls["transformer"](changed), plain), "after the finest grid comes nothing"
    changed[:, 1] = (changed[:, 1] + 1) % 12
    assert not torch.allclose(family.calls["transformer"](changed)[:, 1:], plain[:, 1:], atol=1e-3)


def test_what_is_drawn_scale_by_scale_is_what_the_whole_net_says():
    """Greedy, every token is the likeliest given the coarser grids; one forward a grid."""
    family, forwards = stirred("var", DATA), []
    asked = request(family, [3, 4, 5], top_k=1)
    calls = {**family.calls, "transformer": lambda ids: forwards.append(ids) or family.calls["transformer"](ids)}
    drive(family.trajectory(asked), calls)
    assert len(forwards) == len(COUNTS) and all(ids.shape == (3, 70) for ids in forwards)
    tokens = tokens_of(family, asked)
    prefix = 12 + torch.tensor([3, 4, 5])[:, None] % 3
    assert torch.equal(family.calls["transformer"](torch.cat([prefix, tokens], 1)).argmax(-1), tokens)
    assert len(tokens.unique()) > 1


def test_classes_and_guidance_steer_and_texts_too():
    family = stirred("var", DATA)
    settings = family.Settings(guidance_scale=20.0, temperature=0.1)
    label, away = torch.tensor([0, 1, 0]), torch.tensor([2, 2, 1])
    asked = Request(torch.tensor([1, 1, 1]), settings, Conditions(label=label, negative_label=away))
    tokens = tokens_of(family, asked)
    assert (tokens[0] != tokens[1]).any() and (tokens[0] != tokens[2]).any()
    captioned = DATA.model_copy(update={"caption_length": CAPTION_LENGTH, "classes": ()})
    family = stirred("var", captioned, conditioning="text", text_length=12)
    asked = Request(torch.tensor([1, 1]), settings, Conditions(prompt=("a red cat", "a dog")))
    together = tokens_of(family, asked)
    assert (together[0] != together[1]).any() and torch.equal(tokens_of(family, asked.take([1]))[0], together[1])


def test_an_edit_keeps_the_tokens_and_pixels_outside_its_mask():
    family = stirred("var", DATA)
    images = torch.rand(2, *IMAGES.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :, 8:] = 1
    conditions = Conditions(label=torch.tensor([0, 1]), source=Source(images, 1.0, mask))
    asked = Request(torch.tensor([5, 6]), family.Settings(), conditions)
    changed = tokens_of(family, asked) != family.calls["tokeniser"](images)
    assert not changed[:, [1, 3]].any() and not changed[:, 5:].view(2, 8, 8)[..., :4].any()
    assert changed[:, 5:].view(2, 8, 8)[..., 4:].any()
    edited = family.sample(asked)
    assert torch.equal(edited[..., :8], images[..., :8]) and not torch.equal(edited, images)


def test_requests_at_different_scales_share_forwards_and_come_out_as_alone():
    family = stirred("var", DATA)
    requests = [
        request(family, [1], temperature=0.7),
        request(family, [2, 3], guidance_scale=3.0),
        request(family, [4], top_k=2),
    ]
    images, forwards = co_batched(family, requests)
    for asked, found in zip(requests, images, strict=True):
        assert torch.allclose(family.sample(asked), found, atol=1e-4)
    assert max(forward.num_calls for forward in forwards) > 1


def test_previews_show_the_grids_that_are_drawn():
    family, shown = stirred("var", DATA), []
    trajectory = family.trajectory(request(family, [1, 2]))
    call = next(trajectory)
    while True:
        if call.preview is not None:
            shown.append(call.preview.progress)
            assert drive(call.preview.start(), family.calls).shape == (2, *IMAGES.shape)
        try:
            call = trajectory.send(family.calls[call.net](**call.inputs))
        except StopIteration:
            break
    assert shown == pytest.approx([1 / 3, 2 / 3])


def test_other_tokens_are_refused():
    with pytest.raises(DataError, match=r"var: expected tokens of .*codebook: \{name: scales\}"):
        stirred("var", TOKENS)


def test_language_models_take_the_tokens_of_scales_as_a_sequence():
    family = stirred("gpt", DATA)
    assert family.sample(request(family, [1, 2])).shape == (2, *IMAGES.shape)
