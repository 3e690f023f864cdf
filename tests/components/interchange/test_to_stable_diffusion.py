"""Runs of Stable Diffusion as folders: read again they have the same weights, and diffusers draws the same images."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from components.artifacts.run_folder import Provenance, Run, RunConfig
from components.data.randomness import Draws
from components.diffusion.schedules import ScheduleConfig
from components.errors import SamplerError
from components.families.stable_diffusion import Model, adapter_net
from components.interchange import lora, to_stable_diffusion
from components.interchange.from_diffusers import read
from components.nets.low_rank import AdapterConfig
from components.sampling.requests import Conditions, Request
from tests.components.helpers import assert_same
from tests.components.interchange import folders

PROMPTS = ("a fish", "two cats")


def run_of(family: Model, folder) -> Run:
    provenance = Provenance(data="d", code="c", job="j", seed=0, step=1)
    return Run(family, RunConfig(family="stable_diffusion", config={}, data=family.data, provenance=provenance), folder)


def changed(family: Model, **config) -> Model:
    """A model of another config with the same weights, as far as it had them."""
    other = Model(family.config.model_copy(update=config), family.data)
    for net in family.kept:
        other.nets[net].load_state_dict(family.nets[net].state_dict())
    other.nets.eval()
    return other


def trained(family: Model) -> Model:
    """As fine-tuning leaves it: what moves has moved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name in family.nets:
            if name not in family.pretrained:
                for parameter in family.nets[name].parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return family


def drawn(family: Model, **settings) -> torch.Tensor:
    settings = family.Settings(solver="euler", num_inference_steps=4, guidance_scale=3.0, **settings)
    asked = Conditions(prompt=PROMPTS, negative_prompt=("", ""))
    return family.sample(Request(torch.arange(2), settings, asked))


def theirs(folder, family: Model) -> torch.Tensor:
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = Draws.of_seeds(torch.arange(2)).normal("start", family.data.shape)
    common = {"prompt": list(PROMPTS), "negative_prompt": ["", ""], "latents": noise, "output_type": "pt"}
    return pipe(**common, guidance_scale=3.0, num_inference_steps=4).images * 2 - 1


def assert_same_models(found: Model, expected: Model) -> None:
    assert found.config.model_dump(exclude={"text"}) == expected.config.model_dump(exclude={"text"})
    assert found.data == expected.data
    assert found.kept == expected.kept
    for net in expected.kept:
        assert_same(dict(found.nets[net].state_dict()), dict(expected.nets[net].state_dict()), net)
    assert found.nets["text"].tokens(["a fish! ", ""]).keys() == expected.nets["text"].tokens([""]).keys()


@pytest.mark.parametrize("kind", ["1", "2", "xl"])
def test_a_tuned_model_goes_out_and_comes_in_again(kind, tmp_path):
    made = folders.stable_diffusion_xl if kind == "xl" else folders.stable_diffusion
    made(tmp_path / "model", **({} if kind == "xl" else {"second": kind == "2"}))
    family = trained(read(tmp_path / "model"))
    to_stable_diffusion.export(run_of(family, tmp_path / "run"), tmp_path / "out")
    assert_same_models(read(tmp_path / "out"), family)
    assert (theirs(tmp_path / "out", family) - drawn(family)).abs().max() < 1e-3


def test_a_refiner_goes_out_beside_its_base(tmp_path):
    base = folders.stable_diffusion_xl(tmp_path / "base")
    folders.refiner(tmp_path / "fine", base)
    family = trained(read(tmp_path / "base", tmp_path / "fine"))
    to_stable_diffusion.export(run_of(family, tmp_path / "run"), tmp_path / "out")
    assert_same_models(read(tmp_path / "out", tmp_path / "out" / "refiner"), family)
    import diffusers

    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(tmp_path / "out" / "refiner")
    assert pipe.config.requires_aesthetics_score and pipe.text_encoder is None


@pytest.mark.parametrize(
    "schedule",
    [
        {"levels": "leading", "offset": 1},
        {"levels": "trailing", "zero_terminal_snr": True},
        {"levels": "inner", "offset": 1},
        {"levels": "linspace", "karras": True},
    ],
)
def test_the_scheduler_visits_the_same_levels(schedule, tmp_path):
    folders.stable_diffusion(tmp_path / "model", second=True)
    family = read(tmp_path / "model")
    wanted = ScheduleConfig(name="scaled_linear", **schedule)
    family = changed(family, schedule=wanted)
    to_stable_diffusion.export(run_of(family, tmp_path / "run"), tmp_path / "out")
    assert read(tmp_path / "out").config.schedule == wanted


def test_the_only_adapter_is_in_the_folder_and_several_are_refused(tmp_path):
    folders.stable_diffusion(tmp_path / "model")
    plain = read(tmp_path / "model")
    adapted = {"ink": AdapterConfig(rank=2, alpha=4), "oil": AdapterConfig(rank=2)}

    def with_adapters(*names: str) -> Model:
        torch.manual_seed(0)
        return trained(changed(plain, adapters={name: adapted[name] for name in names}))

    family = with_adapters("ink")
    to_stable_diffusion.export(run_of(family, tmp_path / "run"), tmp_path / "out")
    merged = read(tmp_path / "out")
    assert merged.kept == plain.kept
    expected, found = drawn(family), drawn(merged)
    assert (found - expected).abs().max() < 1e-4 < (found - drawn(plain)).abs().max()
    lora.export(run_of(family, tmp_path / "run"), tmp_path / "lora")
    apart = read(tmp_path / "model", adapters={"ink": tmp_path / "lora"})
    assert (drawn(apart) - expected).abs().max() < 1e-4
    assert adapter_net("ink") in apart.kept
    with pytest.raises(SamplerError, match="the adapters ink, oil; expected one at most, .*--to lora"):
        to_stable_diffusion.export(run_of(with_adapters("ink", "oil"), tmp_path / "run"), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_what_a_folder_cannot_say_is_refused(tmp_path):
    folders.stable_diffusion(tmp_path / "model")
    family = read(tmp_path / "model")
    run = run_of(family, tmp_path / "run")
    tall = family.data.model_copy(update={"shape": (4, 8, 4)})
    shifted = family.config.model_copy(update={"latent_mean": (0.1, 0.0, 0.0, 0.0)})
    for other, told in (
        (Model(family.config, tall), "latents of 8x4; a folder knows one side"),
        (Model(shifted, family.data), "latents normalised channel by channel"),
    ):
        with pytest.raises(SamplerError, match=told):
            to_stable_diffusion.export(replace(run, family=other), tmp_path / "out")


def test_published_marks_are_told_and_not_those_of_an_encoders_config(tmp_path):
    folders.stable_diffusion(tmp_path / "model")
    config = tmp_path / "model" / "text_encoder" / "config.json"
    # Stable Diffusion 1 says so of its encoder
    config.write_text(json.dumps({**json.loads(config.read_text()), "bos_token_id": 0, "eos_token_id": 2}))
    to_stable_diffusion.export(run_of(read(tmp_path / "model"), tmp_path / "run"), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer_config.json").read_text())
    assert (told["bos_token"], told["eos_token"]) == ("<|startoftext|>", "<|endoftext|>")
    assert told["pad_token"] == "<|endoftext|>" and told["model_max_length"] == 16
