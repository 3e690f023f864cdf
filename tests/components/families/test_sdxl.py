"""SDXL from scratch: two text encoders, what the net is told of sizes and crops, the refiner and when it takes over."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from components.artifacts.run_folder import Run, RunConfig
from components.conditioning.embedding import scaled
from components.conditioning.size_embedding import POOLED, SIZES
from components.data.randomness import Draws
from components.errors import ConfigError, DataError, SamplerError
from components.families.sdxl import Model
from components.interchange import to_diffusers
from components.sampling.requests import Conditions, Request
from components.sampling.trajectories import drive
from tests.components.families.contract import PROVENANCE, co_batched, fast
from tests.components.helpers import build, stream, tiny, tiny_data

TEXTS = ("a red cat", "a dog")


@pytest.fixture(scope="module")
def sampler() -> Model:
    family = build("sdxl")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("denoiser", "refiner"):
            for parameter in family.nets[name].parameters():
                torch.nn.init.normal_(parameter, std=0.2)
    family.nets.requires_grad_(False).eval()
    return family


def asked(sampler: Model, seeds: tuple[int, ...] = (3, 4), size: tuple[int, int] | None = None, **settings) -> Request:
    chosen = sampler.Settings(**{**fast("sdxl"), **settings})
    sides = None if size is None else torch.tensor([size] * len(seeds))
    return Request(torch.tensor(seeds), chosen, Conditions(prompt=TEXTS[: len(seeds)], size=sides))


def calls_of(sampler: Model, request: Request) -> list:
    calls: list = []
    drive(sampler.trajectory(request), sampler.calls, calls.append)
    return calls


def test_two_encoders_lie_beside_each_other(sampler):
    call = next(call for call in calls_of(sampler, asked(sampler, guidance_scale=1)) if call.net == "denoiser")
    tokens = torch.tensor([list(text.encode().ljust(12, b"\0")) for text in TEXTS])
    clip = sampler.nets["clip"].texts(tokens)
    own = sampler.nets["denoiser"].conditioner.text(tokens)
    assert torch.equal(call.inputs["context"], torch.cat([own, clip["tokens"]], dim=2))
    assert torch.equal(call.inputs[POOLED], scaled(clip["pooled"]))
    batch, seen = next(stream("sdxl", 4)), {}
    sampler.loss(lambda **inputs: seen.update(inputs) or torch.zeros_like(inputs["x"]), batch)
    told = sampler.nets["denoiser"].conditioner(seen["tokens"], seen["known"])["context"]
    assert torch.equal(told[:, :, 8:], sampler.nets["clip"].texts(seen["tokens"])["tokens"])


def test_the_net_is_told_files_cuts_and_what_is_drawn(sampler):
    """In training what is true of each row, in sampling what is asked for."""
    batch = next(stream("sdxl", 5))
    told = sampler._training_further(batch, flips=False)[SIZES]
    assert torch.equal(told[:, :2], batch.columns["raw_size"].float())
    assert torch.equal(told[:, 2:4], batch.columns["crop"][:, :2].float())
    assert torch.equal(told[:, 4:], torch.full((5, 2), 16.0))
    mirrored = batch.draws.uniform("flip") < 0.5
    flipped = sampler._training_further(batch, flips=True)[SIZES]
    assert torch.equal(flipped[:, 3], batch.columns["crop"][:, [1, 3]].float()[torch.arange(5), mirrored.long()])

    def sizes_of(**settings) -> list:
        call = next(call for call in calls_of(sampler, asked(sampler, **settings)) if call.net == "denoiser")
        return call.inputs[SIZES][::2].tolist()  # of the first image, wanted and not

    assert sizes_of() == [[16, 16, 0, 0, 16, 16]] * 2, "as large as what is drawn, uncut"
    settings = {"original_size": (30, 40), "crops_coords_top_left": (2, 3), "negative_original_size": (8, 9)}
    assert sizes_of(**settings) == [[30, 40, 2, 3, 16, 16], [8, 9, 2, 3, 16, 16]]
    assert sizes_of(size=(8, 16))[0] == [16, 16, 0, 0, 8, 16]


def test_files_of_the_usual_size_are_asked_for(sampler):
    family = build("sdxl")
    batch = next(stream("sdxl", 7))
    family.begin(lambda: batch)
    usual = batch.columns["raw_size"].median(dim=0).values
    assert family._usual == tuple(usual.tolist())
    assert torch.equal(family.nets["refiner"].further.usual, usual.float())


CHANGES = ({"original_size": (60, 60)}, {"crops_coords_top_left": (4, 0)}, {"negative_original_size": (6, 6)})


@pytest.mark.parametrize("changes", CHANGES, ids=[next(iter(change)) for change in CHANGES])
def test_sizes_and_crops_change_the_image(sampler, changes):
    plain = sampler.sample(asked(sampler))
    assert (sampler.sample(asked(sampler, **changes)) - plain).abs().max() > 1e-3


def test_a_request_has_the_size_of_a_bucket(sampler):
    assert sampler.sizes == ((16, 16), (8, 16))
    wide = sampler.sample(asked(sampler, size=(8, 16)))
    assert wide.shape == (2, 1, 8, 16)
    assert torch.equal(sampler.sample(asked(sampler, size=(16, 16))), sampler.sample(asked(sampler)))


def test_the_refiner_learns_low_noise_alone(sampler):
    levels = {}
    for phase in sampler.phases:
        levels[phase.name] = []
        for start in range(20):
            batch = next(stream("sdxl", 6, start=start))

            def net(name=phase.name, **inputs):
                levels[name].append(inputs["level"])
                assert name == "denoise" or inputs["context"].shape == (6, 12, 8), "of the CLIP alone"
                return torch.zeros_like(inputs["x"])

            phase.loss(net, batch)
    base, refiner = (torch.cat(levels[name]) for name in ("denoise", "refine"))
    assert base.max() > 700
    assert refiner.min() > 0 and 300 < refiner.max() < 999 * 0.4


def test_the_refiner_takes_over_where_it_is_told_to(sampler):
    """The images of the two nets called by hand, a step each of Euler's method."""
    request = asked(sampler, solver="euler", num_inference_steps=5, guidance_scale=1, refiner_start=0.7)
    calls = calls_of(sampler, request)
    first = next(call for call in calls if call.net == "denoiser")
    told = {name: first.inputs[name] for name in ("context", POOLED, SIZES)}
    conditions = {"denoiser": told, "refiner": {**told, "context": told["context"][:, :, 8:]}}
    asks, sigmas, answered = sampler.preconditioner, sampler.sigmas(request.settings), []
    x = sigmas[0] * Draws.of_seeds(request.seeds).normal("start", sampler.data.shape)
    for sigma, following in itertools.pairwise(sigmas):
        level = float(asks.level(torch.tensor([sigma], dtype=torch.float64)))
        net = "denoiser" if level > 300 - 1e-6 else "refiner"
        answer = sampler.calls[net](**asks.question(x, sigma), **conditions[net])
        x = torch.lerp(asks.denoised(x, sigma, answer), x, following / sigma)
        answered.append(net)
    assert answered == [call.net for call in calls if call.net in conditions] and set(answered) == set(conditions)
    assert torch.allclose(sampler.sample(request), sampler.space.denormalise(x).clamp(-1, 1), atol=1e-5)
    never = dataclasses.replace(request, settings=request.settings.model_copy(update={"refiner_start": 1.0}))
    assert {call.net for call in calls_of(sampler, never)} == {"clip", "denoiser_text", "denoiser"}
    assert not torch.allclose(sampler.sample(never), sampler.sample(request), atol=1e-3)


def test_requests_that_are_told_other_sizes_share_forwards(sampler):
    requests = [
        asked(sampler, (1,), original_size=(20, 30)),
        asked(sampler, (2,), crops_coords_top_left=(1, 4), refiner_start=0.9),
        asked(sampler, (5,), num_inference_steps=2),
    ]
    together, forwards = co_batched(sampler, requests)
    for request, images in zip(requests, together, strict=True):
        assert torch.allclose(images, sampler.sample(request), atol=1e-5)
    assert max(forward.num_calls for forward in forwards if forward.net == "denoiser") > 1


def test_a_guide_hears_the_text_by_its_own_encoder():
    family = build("sdxl", guide={"at": 0.5}, refiner=None)
    with torch.no_grad():
        family.nets["guide"].conditioner.text.project.weight.mul_(-1)
    family.nets.eval()
    calls = calls_of(family, asked(family, guidance="autoguidance"))
    told = {name: next(call for call in calls if call.net == name).inputs for name in ("denoiser", "guide")}
    assert not torch.equal(told["guide"]["context"][:, :, :8], told["denoiser"]["context"][:, :, :8])
    for name, part in (("context", slice(8, None)), (SIZES, slice(None))):
        assert torch.equal(told["guide"][name][..., part], told["denoiser"][name][..., part])


def test_what_does_not_fit_is_refused():
    data = tiny_data("sdxl")
    with pytest.raises(ConfigError, match=r"sdxl: backbone\.context_dim: expected 16, the widths of both encoders"):
        build("sdxl", backbone={"widths": (8, 8), "heads": 2})
    with pytest.raises(ConfigError, match=r"sdxl: refiner\.backbone\.context_dim: expected 8, the CLIP's width"):
        build("sdxl", refiner={"backbone": {"widths": (8, 8), "heads": 2}})
    with pytest.raises(ConfigError, match=r"sdxl: text\.length: expected 12, the CLIP's, found 64"):
        build("sdxl", text={**tiny("sdxl").config["text"], "length": 64})
    with pytest.raises(DataError, match=r"crops"):
        build("sdxl", data=data.model_copy(update={"crops": ()}))
    with pytest.raises(DataError, match="sdxl: expected the run of a CLIP in inputs"):
        build("sdxl", data=data.model_copy(update={"inputs": {}}))
    config, settings, outline = Model.Config(**tiny("sdxl").config), Model.Settings(refiner_start=0.5), data.outline
    assert "the refiner knows the last 0.4 of the way alone; expected 0.6" in Model.why_not(config, settings, outline)
    alone = config.model_copy(update={"refiner": None})
    assert "this model has no refiner" in Model.why_not(alone, settings, outline)


def test_diffusers_has_no_place_for_encoders_of_bytes(sampler, tmp_path):
    config = RunConfig(family="sdxl", config={}, data=sampler.data, provenance=PROVENANCE)
    with pytest.raises(SamplerError, match="what reads its texts as bytes was trained here; diffusers has no place"):
        to_diffusers.export(Run(sampler, config, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
