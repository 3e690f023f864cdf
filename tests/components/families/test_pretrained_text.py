"""latent_diffusion steered by a frozen encoder of transformers: trained on stored embeddings, sampled from prompts."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from components.artifacts import run_folder
from components.conditioning import text
from components.conditioning.text import texts_of_column
from components.data.dataset import batches
from components.errors import DataError
from components.interchange.text_encoders import read
from components.nets.text_encoders import FrozenText
from components.sampling.requests import Blend, Conditions, Request
from components.sampling.trajectories import drive
from components.training.loop import TrainingConfig, fit
from tests.components.families.contract import PROVENANCE, active_phase, co_batched
from tests.components.helpers import (
    CAPTION_LENGTH,
    CAPTIONS,
    LATENTS,
    Rows,
    assert_same,
    build,
    copied,
    no_wrap,
)
from tests.components.interchange import folders

pytestmark = pytest.mark.usefixtures("exact")

CONFIG = TrainingConfig(steps=4, batch_size=6, report_every=2, save_every=2)
SEEDS = torch.tensor([5, 6])


@pytest.fixture(scope="module", params=["clip", "t5"])
def encoder(request, tmp_path_factory) -> FrozenText:
    folder = tmp_path_factory.mktemp("encoder") / request.param
    getattr(folders, request.param)(folder)
    return read(str(folder), 8, "here")


def made(encoder: FrozenText, **changes):
    """The family with the encoder's weights, as Job.build gives it them."""
    data = LATENTS.model_copy(update={"caption_length": CAPTION_LENGTH, "text": encoder.layouts[0].model_dump()})
    family = build("latent_diffusion", 0, data, conditioning="text", text={"encoder": "pretrained"}, **changes)
    family.nets["text"].load_state_dict(encoder.state_dict())
    return family


def stream(encoder: FrozenText):
    """Batches with embeddings as `encode` stores them."""
    rows = Rows(LATENTS.model_copy(update={"caption_length": CAPTION_LENGTH}))
    rows.columns["text"] = encoder.encoded(texts_of_column(rows.columns["caption"])).context.half()
    return batches(rows, CONFIG.batch_size)


def trained(encoder: FrozenText):
    family = made(encoder, label_dropout=0.4)
    report = {"report": lambda step, figures: figures, "save": lambda state: None, "wrap": no_wrap}
    return family, fit(family, stream(encoder), CONFIG, start=None, **report)


def refused(*args, **kwargs):
    raise AssertionError("the encoder ran")


def test_training_moves_all_but_the_encoder_and_never_runs_it(encoder, monkeypatch):
    family = made(encoder, guide={"at": 0.5})
    before, batch = copied(family.nets["text"]), next(stream(encoder))
    monkeypatch.setattr(FrozenText, "forward", refused)
    moving = active_phase(family, "denoise")
    for name, net in family.nets.items():
        net.requires_grad_(name == "denoiser")
    losses = family.loss(moving.net, batch)
    losses["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in moving.raw.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert gradients["conditioner.text.project.weight"].abs().max() > 0
    assert moving.net.calls == 1 and moving.net.outside == []
    assert_same(copied(family.nets["text"]), before)


def steps(encoder: FrozenText) -> tuple[list[float], torch.Tensor]:
    """The losses of a few batches, and the gradients of all weights."""
    family, losses, gradients = made(encoder, label_dropout=0.4), [], []
    for _, batch in zip(range(3), stream(encoder), strict=False):
        family.nets.zero_grad()
        loss = family.loss(family.nets["denoiser"], batch)["loss"]
        loss.backward()
        losses.append(float(loss.detach()))
        gradients += [parameter.grad.flatten() for parameter in family.nets["denoiser"].parameters()]
    return losses, torch.cat(gradients)


def test_stored_embeddings_train_as_those_computed_on_the_spot(encoder, monkeypatch):
    def on_the_spot(texts):
        return torch.cat([encoder.encoded([text]).context for text in texts])

    def told(self, batch, dropped):
        captions = texts_of_column(batch.columns["caption"])
        return on_the_spot(["" if drop else text for text, drop in zip(captions, dropped.tolist(), strict=True)])

    stored, gradient = steps(encoder)
    monkeypatch.setattr(text.Embeddings, "trained", told)
    computed, same = steps(encoder)
    monkeypatch.setattr(text.Embeddings, "trained", lambda self, batch, dropped: on_the_spot(["b"] * len(dropped)))
    _, other = steps(encoder)
    assert computed == pytest.approx(stored, rel=1e-5)
    assert (same - gradient).norm() < 1e-3 * gradient.norm() < 0.1 * (other - gradient).norm()


def test_dropped_captions_are_the_empty_texts_embedding(encoder):
    family = made(encoder, label_dropout=0.5)
    batch = next(stream(encoder))
    told = family._training_condition(batch, family.config.label_dropout)["tokens"]
    dropped = batch.draws.uniform("label_dropout") < 0.5
    assert 0 < int(dropped.sum()) < len(dropped)
    for row, found in enumerate(told):
        stored = batch.columns["text"][row].float()
        torch.testing.assert_close(found, encoder.encoded([""]).context[0] if dropped[row] else stored)


def sample(family, prompts, negative=None, scale=3.0, **parts):
    settings = family.Settings(num_inference_steps=3, guidance_scale=scale)
    seeds = SEEDS[:1].repeat(1 if prompts is None else len(prompts))
    return family.sample(Request(seeds, settings, Conditions(prompt=prompts, negative_prompt=negative), **parts))


def test_prompts_and_negative_prompts_change_the_image(encoder):
    family = made(encoder)
    cat = sample(family, ("a cat",))
    assert (cat - sample(family, ("a dog",))).abs().max() > 1e-3
    assert (cat - sample(family, ("a cat",), ("a dog",))).abs().max() > 1e-3
    assert torch.equal(cat, sample(family, ("a cat",), ("",)))
    assert torch.equal(sample(family, ("a cat",), ("a dog",), 1.0), sample(family, ("a cat",), None, 1.0))
    assert torch.allclose(sample(family, ("a cat",), ("a dog",), 0.0), sample(family, ("a dog",), None, 1.0), atol=1e-5)
    assert torch.equal(sample(family, None), sample(family, ("",)))


def test_a_blend_of_prompts_goes_from_one_to_the_other(encoder):
    family = made(encoder)
    share = torch.linspace(0, 1, 5)
    path = sample(family, ("a cat",) * 5, blend=Blend(None, share, prompt=("two birds",) * 5))
    assert torch.allclose(path[:1], sample(family, ("a cat",)), atol=1e-4)
    assert torch.allclose(path[-1:], sample(family, ("two birds",)), atol=1e-4)
    assert (path[1:] - path[:-1]).abs().amax((1, 2, 3)).min() > 1e-5, "each step changes something"


def test_a_run_folder_carries_the_encoder_and_rows_of_all_requests_share_forwards(encoder, tmp_path):
    family, state = trained(encoder)
    run_folder.write(tmp_path / "run", "latent_diffusion", family, state, PROVENANCE)
    assert (tmp_path / "run/text.safetensors").is_file()
    sampler = run_folder.load(tmp_path / "run").family
    assert_same(copied(sampler.nets["text"]), copied(encoder))
    assert sampler.libraries == ("transformers",)
    settings = sampler.Settings(num_inference_steps=3)
    requests = [
        Request(
            torch.tensor([row]),
            settings,
            Conditions(prompt=(caption,), negative_prompt=("a dog",) if row % 2 else None),
        )
        for row, caption in enumerate(CAPTIONS)
    ]
    together, forwards = co_batched(sampler, requests)
    for request, got in zip(requests, together, strict=True):
        # half precision rounds a difference of the last bit up to its own
        assert (got - sampler.sample(request)).abs().max() < 2e-3
    assert sum(forward.rows for forward in forwards if forward.net == "text") == 5, (
        "empty texts cost no row, nor equal ones"
    )


def test_a_guide_is_asked_about_the_same_embeddings(encoder):
    family = made(encoder, guide={"at": 0.5})
    with torch.no_grad():
        family.nets["guide"].conditioner.text.project.weight.mul_(-1)
    counts = {}

    def counting(name, answer):
        def counted(**inputs):
            counts[name] = counts.get(name, 0) + len(next(iter(inputs.values())))
            return answer(**inputs)

        return counted

    settings = family.Settings(num_inference_steps=3, guidance="autoguidance")
    request = Request(SEEDS, settings, Conditions(prompt=("a cat", "a dog")))
    calls = {name: counting(name, answer) for name, answer in family.calls.items()}
    family.nets.eval()
    images = drive(family.trajectory(request), calls)
    assert counts == {"text": 2, "denoiser_text": 2, "guide_text": 2, "denoiser": 6, "guide": 6, "decoder": 2}
    assert (images - sample(family, ("a cat", "a dog"))).abs().max() > 1e-4


def test_a_preview_draws_stored_captions(encoder):
    family = made(encoder)
    columns = next(stream(encoder)).columns
    assert family.preview(columns).shape == (CONFIG.batch_size, 1, 16, 16)


def test_latents_without_embeddings_are_refused():
    data = LATENTS.model_copy(update={"caption_length": CAPTION_LENGTH})
    with pytest.raises(DataError, match=r"needs latents beside embeddings .+ expected encode\.text in params\.yaml"):
        build("latent_diffusion", 0, data, conditioning="text", text={"encoder": "pretrained"})
