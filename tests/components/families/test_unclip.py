"""unclip: embeddings at their scale, the better of candidates, variations, text differences, blends."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from components.conditioning.embedding import scaled
from components.data.dataset import Batch, batches
from components.data.randomness import Draws
from components.errors import DataError, SamplerError
from components.families import unclip
from components.metrics.embeddings import prior_figures
from components.metrics.figures import values
from components.nets.prior import Prior
from components.sampling.requests import Blend, Conditions, Request
from components.sampling.trajectories import drive
from tests.components.families.contract import fast
from tests.components.helpers import IMAGES, LATENTS, Rows, build, stream, tiny_data

TEXTS = ("a dog", "two birds", "a red cat")


@pytest.fixture(scope="module")
def sampler() -> unclip.Model:
    family = build("unclip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("prior_net", "decoder_denoiser"):
            for parameter in family.nets[name].parameters():
                torch.nn.init.normal_(parameter, std=0.15)
    family.nets.requires_grad_(False).eval()
    return family


def asked(sampler, blend: Blend | None = None, prior: dict | None = None, difference=0.35, **conditions) -> Request:
    settings = fast("unclip")
    chosen = {"prior": settings["prior"] | (prior or {}), "decoder": settings["decoder"], "text_difference": difference}
    return Request(torch.tensor([3, 4, 5]), sampler.Settings(**chosen), Conditions(**conditions), blend)


def embedding(sampler, request: Request) -> torch.Tensor:
    return drive(sampler._embedding(request), sampler.calls)


def of_texts(sampler, *texts: str) -> torch.Tensor:
    return sampler.nets["clip_clip"].texts(sampler.parts["prior"].asked(texts, torch.device("cpu"))["tokens"])["pooled"]


def images() -> torch.Tensor:
    return torch.rand(3, *IMAGES.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_clip_is_an_input_that_stays_as_it_was_trained(sampler):
    assert sampler.pretrained == sampler.nets_of_input("clip") == ("clip_clip",)
    assert [phase.name for phase in sampler.phases] == ["prior_embed", "decoder_denoise"]
    with pytest.raises(DataError, match="expected the run of a CLIP in inputs"):
        build("unclip", data=tiny_data("unclip").model_copy(update={"inputs": {}}))
    with pytest.raises(DataError, match=r"a CLIP of images \(1, 24, 24\), found one of \(1, 16, 16\)"):
        build("unclip", data=tiny_data("unclip").model_copy(update={"shape": (1, 24, 24)}))


def test_on_latents_both_parts_learn_what_these_decode_to():
    inputs, captions = tiny_data("unclip").inputs, tiny_data("unclip").caption_length
    data = LATENTS.model_copy(update={"inputs": inputs, "caption_length": captions})
    sampler, batch = build("unclip", data=data), next(batches(Rows(data), 4))
    for phase in sampler.phases:
        loss = phase.loss(sampler.nets[phase.net], batch)["loss"]
        loss.backward()
        assert loss.isfinite() and any(parameter.grad is not None for parameter in sampler.nets[phase.net].parameters())
    decoder = sampler.parts["decoder"]
    latents = decoder.space.clean(batch, flips=False)
    images = sampler.nets["decoder_autoencoder"].decode(latents).clamp(-1, 1)
    assert torch.equal(decoder.embeddings(batch), sampler.nets["clip_clip"].images(images))
    assert sampler.in_data == {"decoder_autoencoder": "autoencoder"}

    sampler.nets.requires_grad_(False).eval()
    held_out = Rows(tiny_data("unclip")).take(torch.arange(4))
    losses = sampler.held_out_losses(sampler.training_columns(held_out), batch.draws)
    assert losses.shape == (4, sampler.held_out.levels) and losses.isfinite().all()
    assert "prior_cosine" in values(sampler.validate(batch.columns, held_out, None))
    assert sampler.sample(asked(sampler, prompt=TEXTS)).shape == (3, *IMAGES.shape)


def test_embeddings_are_learnt_at_unit_spread(sampler):
    prior = sampler.parts["prior"]
    drawn = embedding(sampler, asked(sampler, prompt=TEXTS))
    assert torch.allclose(drawn.norm(dim=1), torch.ones(3))
    assert scaled(drawn).square().mean() == pytest.approx(1)
    batch, seen = next(stream("unclip", 6)), {}

    def net(**inputs):
        seen.update(inputs)
        return torch.zeros(6, prior.dim)

    loss = prior.loss(net, batch)["loss"]
    assert loss == pytest.approx(1), "the mean square of what is to be predicted, the clean embedding"
    assert seen["tokens"].shape == (6, 12, 8) and seen["pooled"].shape == seen["x"].shape == (6, 6)
    told = sampler.parts["decoder"]._training_further(Batch(batch.columns, batch.draws.fold("other")), flips=False)
    kept = told["embedding"].norm(dim=1) > 0
    assert told["embedding"][kept].square().mean() == pytest.approx(1) and kept.any()


def test_the_prior_answers_at_the_query_and_hears_everything():
    net = Prior(dim=5, token_dim=4, width=16, depth=1, heads=2)
    given = {"x": torch.randn(2, 5), "level": torch.tensor([10.0, 500.0]), "tokens": torch.randn(2, 7, 4)}
    given = {name: value.requires_grad_() for name, value in (given | {"pooled": torch.randn(2, 5)}).items()}
    answer = net(**given)
    assert answer.shape == (2, 5)
    for name, gradient in zip(given, torch.autograd.grad(answer.square().sum(), list(given.values())), strict=True):
        assert gradient.abs().max() > 0, name


def test_of_candidates_the_nearest_to_the_text_is_kept(sampler):
    text = of_texts(sampler, *TEXTS)
    fits = [
        (embedding(sampler, asked(sampler, prompt=TEXTS, prior={"candidates": count})) * text).sum(1)
        for count in (1, 2, 8)
    ]
    assert (fits[0] <= fits[1]).all() and (fits[1] <= fits[2]).all() and (fits[0] < fits[2]).any()


def test_what_an_image_shows_is_drawn_anew(sampler):
    own = sampler.nets["clip_clip"].images(images())
    assert torch.allclose(embedding(sampler, asked(sampler, image=images())), own, atol=1e-6)
    varied = sampler.sample(asked(sampler, image=images()))
    assert varied.shape == (3, *IMAGES.shape) and varied.abs().max() <= 1
    assert not torch.allclose(varied, sampler.sample(asked(sampler, image=-images())), atol=1e-4)
    with pytest.raises(SamplerError, match="image: expected images 1x16x16, found 1x8x8"):
        sampler.sample(asked(sampler, image=images()[:, :, :8, :8]))


def test_an_image_is_led_from_one_text_to_another(sampler):
    conditions = {"image": images(), "prompt": TEXTS, "instead_of": TEXTS[::-1]}
    own = sampler.nets["clip_clip"].images(images())
    assert torch.allclose(embedding(sampler, asked(sampler, difference=0.0, **conditions)), own, atol=1e-5)
    way = of_texts(sampler, *TEXTS) - of_texts(sampler, *TEXTS[::-1])
    found = embedding(sampler, asked(sampler, difference=1.0, **conditions))
    moved = [0, 2]  # the middle text is the same both times
    assert torch.allclose(found[moved], F.normalize(way[moved], dim=1), atol=1e-4)


def test_a_blend_leads_from_one_text_to_the_other(sampler):
    other = TEXTS[1:] + TEXTS[:1]

    def at(share: float) -> torch.Tensor:
        blend = Blend(None, torch.full((3,), share), prompt=other)
        return embedding(sampler, asked(sampler, blend, prompt=TEXTS))

    assert torch.allclose(at(0.0), embedding(sampler, asked(sampler, prompt=TEXTS)), atol=1e-5)
    assert torch.allclose(at(1.0), embedding(sampler, asked(sampler, prompt=other)), atol=1e-4)
    assert (
        sampler.sample(asked(sampler, Blend(None, torch.full((3,), 0.5), prompt=other), prompt=TEXTS)).isfinite().all()
    )


def test_what_was_never_dropped_is_not_led_away_from():
    tiny_config = unclip.TINY.config
    family = build(
        "unclip",
        prior={**tiny_config["prior"], "label_dropout": 0.0},
        decoder={**tiny_config["decoder"], "label_dropout": 0.0, "embedding_dropout": 0.0},
    )

    def drawn(scale: float) -> torch.Tensor:
        settings = fast("unclip")
        settings = {name: settings[name] | {"guidance_scale": scale} for name in ("prior", "decoder")}
        request = Request(torch.tensor([3, 4, 5]), family.Settings(**settings), Conditions(prompt=TEXTS))
        return family.sample(request)

    assert torch.equal(drawn(1.0), drawn(4.0))
    told = {name: family.Settings(**{name: {"guidance_scale": 4.0}}) for name in ("prior", "decoder")}
    for name, settings in told.items():
        reason = family.unheard(family.config, settings, family.data.outline)
        assert reason.startswith(f"{name}.guidance_scale: this model is never trained without its text")
    assert family.unheard(family.config, family.Settings(), family.data.outline) is None


def test_figures_of_a_prior_by_hand(sampler):
    true = torch.eye(3)
    perfect, constant = (values(prior_figures(drawn, true)) for drawn in (true, torch.full((3, 3), 3**-0.5)))
    assert perfect == pytest.approx(
        {"prior_cosine": 1, "prior_cosine_shuffled": 0, "prior_cosine_margin": 1, "prior_spread": 1}
    )
    assert constant["prior_cosine_margin"] == pytest.approx(0) and constant["prior_spread"] == pytest.approx(0)
    columns = next(stream("unclip", 6)).columns
    assert set(sampler.validate(columns, columns, None)) == set(sampler.checkpoint_figures)


def test_held_out_losses_are_told_every_embedding():
    told = build("unclip").config.decoder.model_dump()
    kept, dropped = (build("unclip", decoder={**told, "embedding_dropout": share}) for share in (0.0, 1.0))
    columns = next(stream("unclip", 4)).columns
    draws = Draws.of_seeds(torch.arange(4))
    for family in (kept, dropped):
        family.nets.eval()
    assert torch.equal(kept.held_out_losses(columns, draws), dropped.held_out_losses(columns, draws))
