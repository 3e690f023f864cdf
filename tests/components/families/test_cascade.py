"""A cascade: stages at their own sizes, the noise on what one hands to the next, requests by size."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from components.conditioning.low_resolution import enlarged, noised, reduced
from components.data.dataset import Batch
from components.data.info import DataOutline
from components.diffusion.guidance import thresholded
from components.errors import ConfigError, DataError, SamplerError
from components.families import family_class
from components.families.cascade import Model
from components.sampling.requests import Conditions, Request
from tests.components.families.contract import fast
from tests.components.helpers import DATA, IMAGES, LATENTS, build, stream, tiny

SMALL = tiny("cascade").config["base"]
THREE = {"base": SMALL, "up1": SMALL, "up2": {**SMALL, "factor": 4}}


@pytest.fixture(scope="module")
def sampler() -> Model:
    family = build("cascade", up1=SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in family.nets.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    family.nets.requires_grad_(False).eval()
    return family


def asked(sampler: Model, sizes: list[tuple[int, int]] | None = None, **up1) -> Request:
    settings = fast("cascade")
    size = None if sizes is None else torch.tensor(sizes)
    chosen = sampler.Settings(**{**settings, "up1": settings["up1"] | up1})
    return Request(torch.tensor([3, 4]), chosen, Conditions(label=torch.tensor([0, 2]), size=size))


def test_stages_have_the_datas_size_less_the_factors_after_them():
    family = build("cascade", data=IMAGES.model_copy(update={"shape": (3, 64, 32)}), **THREE)
    assert [part.data.shape for part in family.parts.values()] == [(3, 8, 4), (3, 16, 8), (3, 64, 32)]
    assert family.sizes == ((64, 32), (16, 8), (8, 4))
    assert [phase.name for phase in family.phases] == ["base_denoise", "up1_denoise", "up2_denoise"]
    with pytest.raises(SamplerError, match="cascade: .*36"):
        build("cascade", data=IMAGES.model_copy(update={"shape": (3, 36, 36)}), **THREE)
    with pytest.raises(DataError, match="cascade: works on images themselves"):
        build("cascade", data=LATENTS)
    with pytest.raises(ConfigError, match=r"up1\.crop: expected at most 16, found 24"):
        build("cascade", up1={**SMALL, "crop": 24})
    with pytest.raises(
        SamplerError, match=r"up1\.crop: expected a height and width that are multiples of 2, found 9x9"
    ):
        build("cascade", up1={**SMALL, "crop": 9})


def test_every_stage_learns_from_the_same_rows_at_its_size(sampler):
    batch = next(stream("cascade", 4))
    rows = sampler.medium.rows(batch.columns)
    base, up = sampler.parts["base"], sampler.parts["up1"]
    assert torch.equal(base.space.clean(batch, False), reduced(rows, (8, 8)))
    told = up._training_further(batch, flips=False)
    assert (told["low_level"] < 0.5).all() and told["low_level"].unique().numel() == 4, "a level a row"
    expected = enlarged(up.space.normalise(reduced(rows, (8, 8))), (16, 16))
    assert torch.equal(told["low"], noised(expected, told["low_level"], batch.draws.normal("low", (1, 16, 16))))
    losses = [part.loss(part.nets["denoiser"], batch)["loss"] for part in sampler.parts.values()]
    assert losses[0] != losses[1]


def test_noise_keeps_the_spread_and_ends_where_nothing_is_left():
    low, noise = torch.randn(2, 4, 1, 64, 64)
    level = torch.tensor([0.0, 0.2, 0.7, 1.0])
    found = noised(low, level, noise)
    assert torch.equal(found[0], low[0]) and torch.allclose(found[3], noise[3], atol=1e-5)
    assert torch.allclose(found.flatten(1).std(1), torch.ones(4), atol=0.05)


def test_a_crop_cuts_the_same_square_of_all(sampler):
    up = build("cascade", up1={**SMALL, "crop": 8, "most_augmentation": 1e-6}).parts["up1"]
    place = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16).expand(5, 1, 16, 16)
    draws = next(stream("cascade", 5)).draws
    cut = up.space.cropped(place, draws)
    assert cut.shape == (5, 1, 8, 8) and cut[:, 0, 0, 0].unique().numel() > 1
    within = torch.arange(8)
    assert torch.equal(cut - cut[:, :, :1, :1], (16 * within[:, None] + within).expand(5, 1, 8, 8).float())
    column = ((place / 128 - 1) * 127.5 + 127.5).to(torch.uint8)
    batch = Batch({"image": column}, draws)
    clean, low = up.space.clean(batch, False), up._training_further(batch, False)["low"]
    assert (up.space.denormalise(low) - clean)[:, :, 2:-2, 2:-2].abs().max() < 0.05, "a ramp is its own enlargement"


def test_a_size_ends_at_its_stage(sampler):
    whole = sampler.sample(asked(sampler))
    assert whole.shape == (2, 1, 16, 16) and torch.equal(sampler.sample(asked(sampler, [(16, 16)] * 2)), whole)
    small = sampler.sample(asked(sampler, [(8, 8)] * 2))
    request = asked(sampler)
    alone = dataclasses.replace(request, settings=request.settings.base)
    assert torch.equal(small, sampler.parts["base"].sample(alone))
    with pytest.raises(SamplerError, match=r"size: expected one of 16x16, 8x8 for a whole request, found \[\[9, 9\]"):
        sampler.sample(asked(sampler, [(9, 9)] * 2))
    with pytest.raises(SamplerError, match="for a whole request"):
        sampler.sample(asked(sampler, [(8, 8), (16, 16)]))
    with pytest.raises(SamplerError, match="size: this sampler makes images of one size"):
        gan = build("dcgan")
        gan.trajectory(Request(torch.tensor([1]), gan.Settings(), Conditions(size=torch.tensor([[16, 16]]))))


def test_augmentation_hides_the_stage_before(sampler):
    up, settings = sampler.parts["up1"], sampler.Settings(**fast("cascade")).up1
    low = torch.stack([torch.full((1, 8, 8), value) for value in (-0.9, 0.9)])

    def made(level: float) -> torch.Tensor:
        chosen = settings.model_copy(update={"augmentation": level})
        return up.sample(Request(torch.tensor([7, 7]), chosen, Conditions(low=low)))

    seen, hidden = made(0.0), made(1.0)
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    assert torch.allclose(hidden[0], hidden[1], atol=1e-5)
    assert not torch.equal(sampler.sample(asked(sampler, augmentation=0.1)), sampler.sample(asked(sampler)))


def test_dynamic_thresholding_by_hand():
    images = torch.tensor([[0.5, -0.25, 0.0, 0.1], [3.0, -2.0, 1.0, 0.5]])[:, None, None]

    def denoise(x, sigma):
        yield from ()
        return 2 * images

    def run(quantile: float) -> torch.Tensor:
        trajectory = thresholded(denoise, quantile, lambda x: 2 * x, lambda x: x / 2)(images, 1.0)
        with pytest.raises(StopIteration) as stop:
            next(trajectory)
        return stop.value.value / 2

    found = run(2 / 3)  # of the second row: 2
    assert torch.equal(found[0], images[0]), "what lies within stays"
    assert torch.allclose(found[1].flatten(), torch.tensor([1.0, -1.0, 0.5, 0.25]))
    latents = build("latent_diffusion")
    with pytest.raises(SamplerError, match="dynamic_threshold: latents have no bounds"):
        latents.trajectory(Request(torch.tensor([1]), latents.Settings(dynamic_threshold=0.9)))


def test_settings_of_stages_that_are_not_there_are_refused():
    kind, data = family_class("cascade"), DataOutline()
    two = kind.Config(**tiny("cascade").config)
    reason = kind.why_not(two, kind.Settings(up3={"augmentation": 0.3}), data)
    assert reason == "up3: this cascade has no such stage; expected settings of base, up1"
    assert kind.why_not(two, kind.Settings(up1={"guidance": "autoguidance"}), data).startswith("up1.guidance")
    three = kind.Config(**THREE)
    settings = kind.Settings(up1={"augmentation": 0.3})
    assert kind.why_not(three, settings, data) is None and settings.of("up2") == settings.up1


def test_captions_are_cut_to_what_all_stages_take():
    text = {**SMALL, "conditioning": "text", "text": {"length": 12, "width": 8, "layers": 1, "heads": 2}}
    longer = {**text, "text": {**text["text"], "length": 20}}
    family = build("cascade", data=DATA["captioned images"], base=longer, up1=text)
    assert family.caption_limits == {"model.base.text.length": 20, "model.up1.text.length": 12}
    assert family.prompts_of(("x" * 30,)) == ("x" * 12,)


def test_a_cascade_of_texts():
    text = {**SMALL, "conditioning": "text", "text": {"length": 12, "width": 8, "layers": 1, "heads": 2}}
    family = build("cascade", data=DATA["captioned images"], base=text, up1={**text, "conditioning": "none"})
    family.nets.requires_grad_(False).eval()
    assert family.accepts == {"prompt", "negative_prompt", "size"}
    settings = family.Settings(**fast("cascade"))
    conditions = Conditions(prompt=("a dog", "a dog"), negative_prompt=("", "two birds"))
    images = family.sample(Request(torch.tensor([1, 1]), settings, conditions))
    assert images.shape == (2, 1, 16, 16)
