"""What latent_diffusion can be besides class-conditional on latents: of pixels, of texts, of nothing; differently
weighted; guided by its own past. Each variant keeps the promises of the contract tests."""

from __future__ import annotations

import copy

import pytest
import torch

from components.artifacts import run_folder
from components.artifacts.run_folder import Provenance
from components.conditioning.text import texts_of_column, tokens_of_column
from components.data.dataset import batches
from components.errors import DataError, SamplerError
from components.families import family_class
from components.sampling.requests import Conditions, Request, Source
from components.sampling.trajectories import drive
from components.training import ema
from components.training.loop import ActivePhase, TrainingConfig, fit, step_phase
from tests.components.families.contract import co_batched
from tests.components.helpers import (
    CAPTION_LENGTH,
    CAPTIONS,
    IMAGES,
    LATENTS,
    Rows,
    assert_same,
    build,
    copied,
    no_wrap,
)

pytestmark = pytest.mark.usefixtures("exact")

TEXT = {"conditioning": "text", "text": {"length": 16, "width": 8, "layers": 1, "heads": 2}}
DESCRIBED = LATENTS.model_copy(update={"caption_length": CAPTION_LENGTH})
DIT = {"backbone": {"name": "dit", "width": 16, "depth": 2, "heads": 2, "context_dim": 8, "patch": 2}}
MMDIT = {"backbone": {**DIT["backbone"], "name": "mmdit"}}
VARIANTS = {  # changes of the tiny config, and the data
    "plain": ({}, LATENTS),
    "pixels": ({}, IMAGES),
    "pixels without classes": ({"conditioning": "none"}, IMAGES.model_copy(update={"classes": ()})),
    "unconditional": ({"conditioning": "none"}, LATENTS),
    "text": (TEXT, DESCRIBED),
    "text on pixels": (TEXT, IMAGES.model_copy(update={"caption_length": CAPTION_LENGTH, "classes": ()})),
    "flips": ({"flips": True}, LATENTS.model_copy(update={"flips": True})),
    "flips of pixels": ({"flips": True}, IMAGES),
    "min-SNR": ({"weighting": {"name": "min_snr"}}, LATENTS),
    "learned weighting": ({"weighting": {"name": "learned"}}, LATENTS),
    "text, learned weighting": ({**TEXT, "weighting": {"name": "learned"}}, DESCRIBED),
    "zero terminal SNR": (
        {"objective": "v", "schedule": {"name": "scaled_linear", "zero_terminal_snr": True}},
        LATENTS,
    ),
    "guide": ({"guide": {"at": 0.5}}, LATENTS),
    "transformer": (DIT, LATENTS),
    "transformer on pixels, muon": ({**DIT, "optimizer": {"name": "muon", "weight_decay": 0.1}}, IMAGES),
    "transformer of texts, guide": ({**DIT, **TEXT, "guide": {"at": 0.5}}, DESCRIBED),
    "text beside the image, guide": ({**MMDIT, **TEXT, "guide": {"at": 0.5}}, DESCRIBED),
    "class beside the image": (MMDIT, LATENTS),
    "text, guide": ({**TEXT, "guide": {"at": 0.5}}, DESCRIBED),
}
CONFIG = TrainingConfig(steps=4, batch_size=6, report_every=2, save_every=2, ema_snapshots=4)
PROVENANCE = Provenance(data="d", code="c", job="j", seed=0, step=4)
SEEDS = torch.tensor([5, 6, 7])


def variant(name: str, seed: int = 0):
    changes, data = VARIANTS[name]
    return build("latent_diffusion", seed, data, **changes)


class Described(Rows):
    def __len__(self) -> int:
        return 20


def stream(name: str, start: int = 0):
    data = VARIANTS[name][1]
    rows = Described(data.model_copy(update={"classes": IMAGES.classes}))
    if not data.classes:
        rows.columns.pop("label")
    return batches(rows, CONFIG.batch_size, start=start)


def trained(name: str, start=None, saved=lambda state: None):
    family = variant(name, seed=0 if start is None else 1)
    begin = start.step if start else 0
    report = {"report": lambda step, figures: figures, "save": saved, "wrap": no_wrap}
    return family, fit(family, stream(name, begin), CONFIG, start=start, **report)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name in VARIANTS:
        family, state = trained(name)
        found[name] = tmp_path_factory.mktemp("runs") / "run"
        run_folder.write(found[name], "latent_diffusion", family, state, PROVENANCE)
    return found


def asked(sampler, seeds=SEEDS, source=None, **settings) -> Request:
    chosen = sampler.Settings(**{"num_inference_steps": 3, **settings})
    rows = range(len(seeds))
    labels = torch.tensor([row % 3 for row in rows]) if sampler.conditional else None
    prompts = tuple(CAPTIONS[row] for row in rows) if sampler.texts else None
    return Request(seeds, chosen, Conditions(label=labels, prompt=prompts, source=source))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_moves_and_every_term_has_a_gradient(name):
    family = variant(name)
    family.nets.train()
    (phase,) = family.phases
    others = {net: copied(module) for net, module in family.nets.items() if net != phase.net}
    raw = family.nets[phase.net]
    losses = phase.loss(raw, next(stream(name)))
    for term, value in losses.items():
        gradients = torch.autograd.grad(value, list(raw.parameters()), retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients), term
    active = ActivePhase(phase, raw, raw, torch.optim.SGD(raw.parameters(), lr=0.1))
    step_phase(family, active, next(stream(name)), 0, CONFIG)
    assert all(parameter.grad is not None for parameter in raw.parameters()), "an unused weight stalls DDP"
    for net, before in others.items():
        assert_same(copied(family.nets[net]), before, net)


@pytest.mark.parametrize("name", ["flips of pixels", "text, learned weighting", "guide", "transformer on pixels, muon"])
def test_interrupted_run_ends_bit_identical(name):
    kept = {}
    whole, state = trained(name, saved=lambda state: kept.setdefault(state.step, copy.deepcopy(state)))
    resumed, again = trained(name, start=kept[2])
    assert_same(again.average, state.average)
    assert_same(again.snapshots, state.snapshots)
    for net in resumed.kept:
        if net not in (*resumed.pretrained, *resumed.early):
            assert_same(copied(resumed.nets[net]), copied(whole.nets[net]), net)


@pytest.mark.parametrize("name", VARIANTS)
def test_loaded_samples_follow_their_seeds_alone_and_together(name, folders):
    sampler = run_folder.load(folders[name]).family
    settings = {"guidance": "autoguidance"} if "guide" in name else {}
    together = sampler.sample(asked(sampler, **settings))
    assert together.shape == (3, *IMAGES.shape)
    assert together.abs().max() <= 1
    assert torch.equal(sampler.sample(asked(sampler, **settings)), together)
    assert (together[0] - together[1]).abs().max() > 1e-5
    packed, _ = co_batched(sampler, list(asked(sampler, **settings).split(1)))
    for images, wanted in zip(packed, together, strict=True):
        assert torch.allclose(images[0], wanted, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_edits_and_is_looked_at(name, folders):
    sampler = run_folder.load(folders[name]).family
    images = torch.rand(3, *IMAGES.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(3, 1, 16, 16)
    mask[..., :8] = 1
    got = sampler.sample(asked(sampler, source=Source(images, 0.9, mask)))
    assert torch.equal(got[..., 8:], images[..., 8:])
    assert (got[..., :8] - images[..., :8]).abs().max() > 1e-3
    sheet = sampler.preview(next(stream(name)).columns)
    assert sheet.shape[1:] == IMAGES.shape


def test_half_of_the_rows_are_seen_mirrored():
    family, batch = variant("flips of pixels"), next(stream("flips of pixels"))
    plain, seen = (family.space.clean(batch, flips) for flips in (False, True))
    mirrored = [torch.equal(image, other.flip(-1)) for image, other in zip(seen, plain, strict=True)]
    same = [torch.equal(image, other) for image, other in zip(seen, plain, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert any(mirrored) and any(same)

    family, batch = variant("flips"), next(stream("flips"))
    drawn = batch.draws.uniform("flip") < 0.5
    noise = batch.draws.normal("posterior", LATENTS.shape)
    for row, ending in enumerate("_flipped" if which else "" for which in drawn):
        wanted = batch.columns[f"mean{ending}"][row] + batch.columns[f"std{ending}"][row] * noise[row]
        assert torch.allclose(family.space.clean(batch, True)[row], wanted)
    with pytest.raises(DataError, match=r"expected encode\.flips: true"):
        build("latent_diffusion", flips=True)


def test_pixels_pass_through_unchanged():
    sampler = variant("pixels")
    images = torch.rand(2, *IMAGES.shape) * 2 - 1
    near = sampler.sample(asked(sampler, SEEDS[:2], Source(images, 1e-6), spacing="karras"))
    assert (near - images).abs().max() < 0.05
    assert set(sampler.calls) == {"denoiser", "denoiser_whole", "denoiser_shallow"}, "nothing decodes"
    assert sampler.kept == ("denoiser",)


def test_the_guide_is_the_average_from_early_in_the_run(tmp_path):
    family, state = trained("guide")
    run_folder.write(tmp_path / "run", "latent_diffusion", family, state, PROVENANCE)
    kept = run_folder.load(tmp_path / "run").family
    until = [snapshot for snapshot in state.snapshots if snapshot["step"] <= 2]
    assert_same(copied(kept.nets["guide"]), ema.reconstruct(until, 0.1, 2)["denoiser"])
    assert_same(copied(kept.nets["denoiser"]), state.average["denoiser"])
    with pytest.raises(AssertionError):
        assert_same(copied(kept.nets["guide"]), copied(kept.nets["denoiser"]))
    assert set(state.average) == {"denoiser"} and "guide" not in state.nets


def test_a_guide_changes_no_draw_and_no_weight():
    (plain, without), (guided, with_guide) = trained("plain"), trained("guide")
    assert_same(with_guide.average, without.average)
    assert_same(copied(guided.nets["denoiser"]), copied(plain.nets["denoiser"]))


def rows_by_net(sampler, **settings) -> dict[str, int]:
    counts: dict[str, int] = {}

    def counting(name, answer):
        def counted(**inputs):
            counts[name] = counts.get(name, 0) + len(next(iter(inputs.values())))
            return answer(**inputs)

        return counted

    calls = {name: counting(name, answer) for name, answer in sampler.calls.items()}
    drive(sampler.trajectory(asked(sampler, SEEDS[:1], num_inference_steps=4, **settings)), calls)
    return counts


def test_rows_that_guidance_costs():
    sampler = variant("text, guide")
    common = {"decoder": 1}
    unguided = {"denoiser_text": 1, "denoiser": 4, **common}
    assert rows_by_net(sampler, guidance_scale=1) == unguided
    assert rows_by_net(sampler) == {"denoiser_text": 2, "denoiser": 8, **common}
    assert rows_by_net(sampler, guidance="autoguidance", guidance_scale=1) == unguided
    guided = {"denoiser_text": 1, "guide_text": 1, "denoiser": 4, "guide": 4, **common}
    assert rows_by_net(sampler, guidance="autoguidance") == guided
    sigmas = sampler.sigmas(sampler.Settings(num_inference_steps=4))
    only = rows_by_net(sampler, guidance_interval=(sigmas[2], sigmas[1]))
    assert only["denoiser"] == 5


def test_autoguidance_without_a_guide_is_refused():
    sampler = build("latent_diffusion")
    with pytest.raises(SamplerError, match="guidance: autoguidance needs a worse net: a snapshot"):
        sampler.sample(asked(sampler, guidance="autoguidance"))


def test_prompts_and_negative_prompts_steer():
    sampler = variant("text")
    settings = sampler.Settings(num_inference_steps=3, guidance_scale=3.0)

    def sample(prompts, negative=None, scale=3.0):
        chosen = settings.model_copy(update={"guidance_scale": scale})
        return sampler.sample(Request(SEEDS[:1], chosen, Conditions(prompt=prompts, negative_prompt=negative)))

    assert not torch.equal(sample(("a cat",)), sample(("a dog",)))
    assert torch.equal(sample(("a cat",)), sample(("a cat",), ("",)))
    assert not torch.equal(sample(("a cat",)), sample(("a cat",), ("a dog",)))
    assert torch.equal(sample(("a cat",), ("a dog",), 1.0), sample(("a cat",), None, 1.0))
    assert torch.allclose(sample(("a cat",), ("a dog",), 0.0), sample(("a dog",), None, 1.0), atol=1e-5)
    assert torch.equal(sample(None), sample(("",)))
    for bad, message in (("x" * 17, "at most 16 bytes, found 17"), ("a\0b", "zero byte")):
        with pytest.raises(SamplerError, match=message):
            sample((bad,))


def test_captions_that_are_too_long_are_cut_between_characters():
    stored = torch.tensor([list("aé".encode().ljust(4, b"\0"))], dtype=torch.uint8)
    assert texts_of_column(stored) == ("aé",)
    assert texts_of_column(stored[:, :2]) == ("a",)
    assert tokens_of_column(stored, 2).tolist() == [[97, 0]]
    assert tokens_of_column(stored, 6).tolist() == [[97, 0xC3, 0xA9, 0, 0, 0]]


def test_dropped_captions_are_the_empty_prompt():
    family = variant("text")
    batch = next(stream("text"))
    told = family._training_condition(batch, family.config.label_dropout)["tokens"]
    dropped = batch.draws.uniform("label_dropout") < family.config.label_dropout
    for row, tokens in enumerate(told):
        text = bytes(tokens.tolist()).rstrip(b"\0").decode()
        assert text == "" if dropped[row] else text in CAPTIONS


def test_a_text_net_learns_to_tell_captions_apart():
    """Two captions, two flat images: after some steps the prompt decides which one is drawn."""
    changes = {
        **TEXT,
        "backbone": {"widths": (8,), "attention": (True,), "heads": 2, "context_dim": 8},
        "label_dropout": 0.0,
        "times": {"mean": 1.0},
    }
    data = IMAGES.model_copy(update={"shape": (1, 4, 4), "caption_length": CAPTION_LENGTH, "classes": ()})
    family = build("latent_diffusion", 0, data, **changes)
    rows = Described(data.model_copy(update={"classes": IMAGES.classes}))
    rows.columns["image"] = torch.where(torch.arange(20) % 4 < 2, 255, 0)[:, None, None, None].expand(20, 1, 4, 4)
    rows.columns["image"] = rows.columns["image"].to(torch.uint8)
    optimizer = torch.optim.Adam(family.nets["denoiser"].parameters(), lr=2e-2)
    family.nets.train()
    for _, batch in zip(range(100), batches(rows, 32), strict=False):
        optimizer.zero_grad()
        family.loss(family.nets["denoiser"], batch)["loss"].backward()
        optimizer.step()
    settings = family.Settings(num_inference_steps=8, guidance_scale=1.0)
    prompts = CAPTIONS * 4
    images = family.sample(Request(torch.arange(16), settings, Conditions(prompt=prompts)))
    wanted = torch.tensor([1.0, 1.0, -1.0, -1.0] * 4)
    assert (images.mean((1, 2, 3)).sign() == wanted).float().mean() >= 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "epsilon", "schedule": {"name": "linear", "zero_terminal_snr": True}}, "expected v"),
        ({"conditioning": "text", "backbone": {"attention": (False, False)}}, "a text is attended to"),
        ({"text": {"width": 10, "heads": 4}}, "width must be divisible by heads"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        family_class("latent_diffusion").Config(**changes)


@pytest.mark.parametrize("interval", [(2.0, 1.0), (-1.0, 1.0), (1.0, 1.0)])
def test_an_interval_runs_upwards(interval):
    with pytest.raises(ValueError, match="expected 0 <= first < second"):
        family_class("latent_diffusion").Settings(guidance_interval=interval)
