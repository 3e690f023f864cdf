"""Image-to-image, inpainting and negative classes, as every sampler that says `edits` does them."""

from __future__ import annotations

import pytest
import torch

from components.diffusion.solvers import SOLVERS
from components.errors import SamplerError
from components.sampling.blends import slerp
from components.sampling.requests import Blend, Conditions, Request, Source
from components.sampling.trajectories import drive
from tests.components.families.contract import co_batched
from tests.components.helpers import IMAGES, build

SEEDS = torch.tensor([3, 4])
LABELS = torch.tensor([0, 2])
MASK = torch.zeros(2, 1, 16, 16)
MASK[:, :, 4:9, 6:12] = 1


@pytest.fixture(scope="module")
def sampler():
    return build("latent_diffusion")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, *IMAGES.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def edited(sampler, images, strength, mask=None, seeds=SEEDS, **settings):
    chosen = sampler.Settings(**{"num_inference_steps": 6, **settings})
    return sampler.sample(Request(seeds, chosen, Conditions(label=LABELS, source=Source(images, strength, mask))))


def decoded(sampler, images):
    """Through the posterior's mean and back."""
    with torch.no_grad():
        return sampler.autoencoder.reconstruct(images)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spacing", ["schedule", "karras"])
def test_the_less_strength_the_nearer_to_the_source(sampler, images, solver, spacing):
    own = decoded(sampler, images)
    distances = [
        float((edited(sampler, images, strength, solver=solver, spacing=spacing) - own).abs().mean())
        for strength in (0.001, 0.4, 1.0)
    ]
    assert distances[0] < 0.01
    assert distances[0] < distances[1] < distances[2]


def test_full_strength_visits_the_levels_of_a_drawing_from_noise(sampler):
    for spacing in ("schedule", "karras"):
        settings = sampler.Settings(num_inference_steps=10, spacing=spacing)
        whole, half = sampler.sigmas(settings), sampler.sigmas(settings, 0.5)
        assert whole == sampler.sigmas(settings, 1.0)
        assert len(half) == 6
        assert half[0] < whole[0]
    assert half[-1] == 0
    # equally spaced times: a lower start continues the same way
    settings = sampler.Settings(num_inference_steps=10)
    assert sampler.sigmas(settings, 0.3) == pytest.approx(sampler.sigmas(settings)[7:])


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_the_mask_keeps_stays_and_the_rest_is_redrawn(sampler, images, solver):
    got = edited(sampler, images, 1.0, MASK, solver=solver)
    redrawn = MASK.expand_as(got) == 1
    assert torch.equal(got[~redrawn], images[~redrawn])
    assert (got - images)[redrawn].abs().mean() > 0.05
    assert torch.equal(edited(sampler, images, 0.7, torch.zeros_like(MASK), solver=solver), images)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_net_sees_the_kept_part_under_the_noise_of_each_level(sampler, images, solver):
    """A known latent z under noise of level sigma has mean z; x - z is sigma times a unit of noise throughout."""
    seen = []

    def watching(x, level, label):
        seen.append((x.clone(), level.clone()))
        return sampler.calls["denoiser"](x, level, label=label)

    settings = sampler.Settings(num_inference_steps=8, guidance_scale=1.0, solver=solver)
    zero = torch.zeros_like(MASK)
    drive(
        sampler.trajectory(Request(SEEDS, settings, Conditions(label=LABELS, source=Source(images, 1.0, zero)))),
        {**sampler.calls, "denoiser": watching},
    )
    with torch.no_grad():
        known = sampler.space.normalise(sampler.calls["encoder"](images))
    for x, level in seen[1:]:
        sigma = float(sampler.schedule.sigma(level[:1].double() / 999))
        noise = ((1 + sigma) * x - known) / sigma  # flow matching's frame
        assert 0.7 < float(noise.std()) < 1.3


def test_the_kept_part_matters_to_the_redrawn(sampler, images):
    other = images.clone()
    other[:, :, :2] *= -1  # far from the hole, within the net's reach
    redrawn = MASK.expand_as(images) == 1
    first, second = (edited(sampler, source, 1.0, MASK)[redrawn] for source in (images, other))
    assert (first - second).abs().max() > 1e-4


def test_edits_follow_their_seeds(sampler, images):
    once, again = (edited(sampler, images, 0.8, MASK) for _ in range(2))
    assert torch.equal(once, again)
    assert (edited(sampler, images, 0.8, MASK, seeds=SEEDS + 9) - once).abs().max() > 1e-3


def test_edits_together_equal_alone_through_the_engine(sampler, images):
    sampler.nets.eval()
    requests = []
    for row, (strength, solver) in enumerate([(0.3, "ddim"), (1.0, "heun"), (0.7, "dpmpp_2m_sde"), (0.7, "ddim")]):
        one = images[row % 2 : row % 2 + 1]
        mask = MASK[:1] if row % 2 else None
        settings = sampler.Settings(num_inference_steps=5 + row, solver=solver)
        source = Source(one, strength, mask)
        requests.append(
            Request(torch.tensor([row]), settings, Conditions(label=torch.tensor([row % 3]), source=source))
        )
    together, forwards = co_batched(sampler, requests)
    for request, got in zip(requests, together, strict=True):
        assert (got - sampler.sample(request)).abs().max() < 1e-4
    assert max(forward.num_calls for forward in forwards if forward.net == "encoder") > 1


def test_a_negative_class_takes_the_place_of_no_class(sampler):
    def sample(labels, negative, scale):
        settings = sampler.Settings(num_inference_steps=3, guidance_scale=scale)
        return sampler.sample(Request(SEEDS, settings, Conditions(label=labels, negative_label=negative)))

    null = torch.full_like(LABELS, sampler.num_classes)
    others = torch.tensor([1, 1])
    assert torch.equal(sample(LABELS, null, 3), sample(LABELS, None, 3))
    assert not torch.equal(sample(LABELS, others, 3), sample(LABELS, None, 3))
    assert torch.equal(sample(LABELS, others, 1), sample(LABELS, None, 1))
    assert torch.allclose(sample(LABELS, others, 0), sample(others, None, 1), atol=1e-5)
    assert not torch.equal(sample(None, others, 3), sample(None, None, 3)), "from a class towards no class"


def test_a_blend_goes_from_one_seed_to_the_other(sampler):
    settings = sampler.Settings(num_inference_steps=4)
    ends = [sampler.sample(Request(torch.tensor([seed]), settings)) for seed in (3, 4)]
    share = torch.linspace(0, 1, 5)
    blend = Blend(torch.full((5,), 4), share)
    path = sampler.sample(Request(torch.full((5,), 3), settings, blend=blend))
    assert torch.allclose(path[:1], ends[0], atol=1e-5) and torch.allclose(path[-1:], ends[1], atol=1e-5)
    steps = (path[1:] - path[:-1]).abs().mean((1, 2, 3))
    assert steps.min() > 1e-4 and steps.max() < (ends[1] - ends[0]).abs().mean(), "no jump on the way"


def test_a_blend_goes_from_one_class_to_the_other(sampler):
    def sample(rows, labels, blend=None, **settings):
        chosen = sampler.Settings(num_inference_steps=4, **settings)
        labels = None if labels is None else torch.full((rows,), labels)
        return sampler.sample(Request(torch.full((rows,), 3), chosen, Conditions(label=labels), blend=blend))

    share = torch.linspace(0, 1, 5)
    towards = Blend(None, share, label=torch.full((5,), 2))
    ends = [sample(1, label) for label in (0, 2)]
    path = sample(5, 0, towards)
    assert torch.allclose(path[:1], ends[0], atol=1e-5) and torch.allclose(path[-1:], ends[1], atol=1e-5)
    assert (path[1:] - path[:-1]).abs().mean((1, 2, 3)).min() > 1e-5
    assert torch.allclose(sample(5, None, towards)[:1], sample(1, None), atol=1e-5), "from no class"
    both = Blend(torch.full((5,), 4), share, label=torch.full((5,), 2))
    assert torch.allclose(sample(5, 0, both)[:1], ends[0], atol=1e-5)
    last = Request(torch.tensor([4]), sampler.Settings(num_inference_steps=4), Conditions(label=torch.tensor([2])))
    assert torch.allclose(sample(5, 0, both)[-1:], sampler.sample(last), atol=1e-5)


def test_stable_diffusion_blends_texts():
    pytest.importorskip("transformers")
    sampler = build("stable_diffusion")

    def sample(prompts, scale, blend=None):
        settings = sampler.Settings(num_inference_steps=2, guidance_scale=scale)
        return sampler.sample(
            Request(torch.full((len(prompts),), 3), settings, Conditions(prompt=prompts), blend=blend)
        )

    for scale in (1.0, 3.0):
        path = sample(("cat",) * 3, scale, Blend(None, torch.tensor([0, 0.5, 1]), prompt=("dog",) * 3))
        assert torch.allclose(path[[0, 2]], sample(("cat", "dog"), scale), atol=1e-4)
        assert (path[1] - path[[0, 2]]).abs().amax((1, 2, 3)).min() > 1e-5


def test_half_way_between_classes_is_the_mean_of_their_embeddings(sampler):
    x, level = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10.0, 500.0])
    net = sampler.nets["denoiser"]
    weights = torch.tensor([[0.5, 0.0, 0.5, 0.0]] * 2)
    with torch.no_grad():
        found = net(x, level, label=weights)
        for embedding in (net.conditioner.context, net.backbone.class_embedding):
            embedding.weight.data[3] = (embedding.weight[0] + embedding.weight[2]) / 2
        assert torch.allclose(net(x, level, label=torch.tensor([3, 3])), found, atol=1e-6)


def test_the_arc_between_two_draws_keeps_their_spread():
    one, other = torch.randn(2, 6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.25, 0.5, 1.0):
        assert slerp(one, other, torch.full((6,), share)).std() == pytest.approx(1, abs=0.03)
    assert torch.allclose(slerp(one, one, torch.full((6,), 0.4)), one, atol=1e-5)


def test_requests_are_cut_and_moved_whole(images):
    whole = Request(
        SEEDS,
        None,
        Conditions(
            prompt=("a", "b"), negative_label=LABELS, negative_prompt=("c", "d"), source=Source(images, 1, MASK)
        ),
        blend=Blend(SEEDS + 7, torch.tensor([0.2, 0.4]), label=LABELS, prompt=("e", "f")),
    )
    parts = list(whole.to(torch.device("cpu")).split(1))
    assert [part.conditions.prompt for part in parts] == [("a",), ("b",)]
    assert [part.conditions.negative_prompt for part in parts] == [("c",), ("d",)]
    assert torch.equal(torch.cat([part.conditions.negative_label for part in parts]), LABELS)
    assert torch.equal(torch.cat([part.conditions.source.images for part in parts]), images)
    assert torch.equal(torch.cat([part.conditions.source.mask for part in parts]), MASK)
    assert torch.equal(torch.cat([part.blend.seeds for part in parts]), SEEDS + 7)
    assert torch.equal(torch.cat([part.blend.label for part in parts]), LABELS)
    assert [part.blend.prompt for part in parts] == [("e",), ("f",)]
    assert [float(part.blend.share) for part in parts] == pytest.approx([0.2, 0.4])
    assert all(part.conditions.label is None for part in parts)


def test_what_cannot_be_edited_is_refused(sampler, images):
    settings = sampler.Settings()
    for strength in (0, -1, 1.1, float("nan")):
        with pytest.raises(SamplerError, match="strength: expected above 0 and at most 1"):
            Source(images, strength)
    with pytest.raises(SamplerError, match="mask: expected 2x1x16x16, to go with the images, found 2x1x8x8"):
        Source(images, 0.5, torch.ones(2, 1, 8, 8))
    with pytest.raises(SamplerError, match="source: expected images 1x16x16, found 3x16x16"):
        sampler.sample(Request(SEEDS, settings, Conditions(source=Source(images.repeat(1, 3, 1, 1), 0.5))))
    with pytest.raises(SamplerError, match="edits no images"):
        gan = build("dcgan")
        gan.sample(Request(SEEDS, gan.Settings(), Conditions(source=Source(images, 0.5))))
    with pytest.raises(SamplerError, match="no way between two seeds"):
        pixels = build("pixelcnn")
        pixels.sample(Request(SEEDS, pixels.Settings(), Conditions(label=LABELS), Blend(SEEDS, torch.zeros(2))))
    with pytest.raises(SamplerError, match="blend: prompt: this sampler takes no texts"):
        sampler.sample(Request(SEEDS, settings, blend=Blend(None, torch.zeros(2), prompt=("a", "b"))))
    with pytest.raises(SamplerError, match="blend: label: expected one for each of 2 seeds, found 1"):
        sampler.sample(Request(SEEDS, settings, blend=Blend(None, torch.zeros(2), label=LABELS[:1])))
    with pytest.raises(SamplerError, match="negative_label: this sampler is not guided away from classes"):
        gan.sample(Request(SEEDS, gan.Settings(), Conditions(negative_label=LABELS)))
    with pytest.raises(SamplerError, match="label: expected one for each of 2 seeds, found 3"):
        sampler.sample(Request(SEEDS, settings, Conditions(label=torch.tensor([0, 1, 2]))))
    with pytest.raises(SamplerError, match="takes no texts"):
        sampler.sample(Request(SEEDS, settings, Conditions(prompt=("a", "b"))))
