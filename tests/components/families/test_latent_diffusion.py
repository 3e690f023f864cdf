"""Latent diffusion under every solver, objective and schedule."""

from __future__ import annotations

import pytest
import torch

from components.artifacts import run_folder
from components.data.info import DataOutline
from components.diffusion.objectives import OBJECTIVES
from components.diffusion.schedules import TIMES
from components.diffusion.solvers import SOLVERS
from components.families import family_class
from components.sampling.requests import Conditions, Request
from tests.components.families.contract import request
from tests.components.helpers import LATENTS, build, stream

pytestmark = pytest.mark.usefixtures("exact")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spacing", ["schedule", "karras"])
def test_latent_diffusion_samples_with_every_solver(solver, spacing, folders):
    sampler = run_folder.load(folders["latent_diffusion"][0]).family
    settings = {"solver": solver, "spacing": spacing, "num_inference_steps": 3}
    together = sampler.sample(request(sampler, [1, 2], **settings))
    assert torch.isfinite(together).all()
    assert torch.allclose(sampler.sample(request(sampler, [2], **settings))[0], together[1], atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "heun", "plms", "unipc"])
@pytest.mark.parametrize("levels", TIMES)
def test_flows_sample_from_wherever_steps_are_placed(solver, levels):
    sampler = build("latent_diffusion", schedule={"levels": levels})
    for steps in (1, 4):
        rows = sampler.sample(request(sampler, [1], solver=solver, num_inference_steps=steps))
        assert torch.isfinite(rows).all()


def test_labels_and_guidance_steer_latent_diffusion(folders):
    sampler = build("latent_diffusion")
    seeds = torch.tensor([1, 1])

    def sample(labels, scale):
        labels = None if labels is None else torch.tensor(labels)
        return sampler.sample(
            Request(seeds, sampler.Settings(num_inference_steps=3, guidance_scale=scale), Conditions(label=labels))
        )

    assert torch.equal(sample(None, 1), sample(None, 5)), "without a class there is nothing to guide towards"
    first, second = sample([0, 1], 1)
    assert not torch.equal(first, second)
    assert not torch.equal(sample([0, 1], 1), sample([0, 1], 3))
    assert torch.allclose(sample([0, 1], 0), sample(None, 1), atol=1e-5)


def test_nothing_guides_away_from_what_was_never_learned():
    sampler, label = build("latent_diffusion", label_dropout=0.0), torch.tensor([0])

    def sample(scale, **conditions):
        settings = sampler.Settings(num_inference_steps=3, guidance_scale=scale)
        return sampler.sample(Request(torch.tensor([1]), settings, Conditions(label=label, **conditions)))

    assert torch.equal(sample(1), sample(3))
    assert not torch.equal(sample(1), sample(3, negative_label=torch.tensor([1]))), "another class was learned"


@pytest.mark.parametrize(
    ("changes", "settings", "is_heard"),
    [
        ({"label_dropout": 0.0}, {"guidance_scale": 3.0}, False),
        ({"label_dropout": 0.0}, {}, True),
        ({"label_dropout": 0.0}, {"guidance_scale": 1.0}, True),
        ({"label_dropout": 0.0}, {"guidance_scale": 2.0, "guidance": "autoguidance"}, True),
        ({"label_dropout": 0.0, "conditioning": "none"}, {"guidance_scale": 2.0}, True),
        ({}, {"guidance_scale": 2.0}, True),
    ],
)
def test_a_candidate_that_chooses_guidance_from_nothing_is_told(changes, settings, is_heard):
    kind = family_class("latent_diffusion")
    reason = kind.unheard(kind.Config(**changes), kind.Settings(**settings), DataOutline())
    assert reason is None if is_heard else reason.startswith("guidance_scale: this model is never trained without")
    assert kind.unheard(kind.Config(label_dropout=0.0), kind.Settings(guidance_scale=2.0), DataOutline()) is not None
    cascade = family_class("cascade")
    config, blocks = cascade.Config(up1=changes), cascade.Settings(up1=settings)
    assert cascade.unheard(config, blocks, DataOutline()) == (None if is_heard else f"up1.{reason}")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", ["flow", "linear", "scaled_linear", "cosine"])
def test_latent_diffusion_trains_under_every_objective_and_schedule(objective, schedule):
    family = build("latent_diffusion", objective=objective, schedule={"name": schedule})
    loss = family.loss(family.nets["denoiser"], next(stream("latent_diffusion", batch_size=20)))["loss"]
    assert torch.isfinite(loss)
    assert 0.1 < float(loss.detach()) < 10, "targets are of about unit scale for normalised latents"


def test_normalised_latents_round_trip():
    family = build("latent_diffusion")
    latents = torch.randn(4, *LATENTS.shape)
    normal = family.space.normalise(latents)
    assert torch.allclose(normal[:, 0], (latents[:, 0] - 0.3) / 1.5)
    assert torch.allclose(family.space.denormalise(normal), latents, atol=1e-6)
