"""Folders of Stable Diffusion, read into our nets: the same noise and prompts give the images that diffusers gives."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from components.data.randomness import Draws
from components.diffusion.schedules import ScheduleConfig, build, spaced_sigmas
from components.errors import SamplerError
from components.interchange import from_diffusers
from components.interchange.from_diffusers import read
from components.interchange.to_diffusers import BETAS
from components.sampling.requests import Conditions, Request
from tests.components.interchange import folders

PROMPTS = ("a fish", "two cats")


@pytest.fixture(scope="module", params=["1", "2", "xl"])
def pair(request, tmp_path_factory):
    """The kind, its folder, and diffusers' pipeline."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    kind = request.param
    made = folders.stable_diffusion_xl(folder) if kind == "xl" else folders.stable_diffusion(folder, kind == "2")
    made.set_progress_bar_config(disable=True)
    return kind, folder, made


def ours(family, prompts=PROMPTS, negative=None, **settings):
    seeds = torch.arange(len(prompts))
    settings = family.Settings(solver="euler", num_inference_steps=5, **settings)
    return family.sample(Request(seeds, settings, Conditions(prompt=prompts, negative_prompt=negative))), settings


def noise(family, count: int) -> torch.Tensor:
    return Draws.of_seeds(torch.arange(count)).normal("start", family.data.shape)


@pytest.mark.parametrize(("scale", "negative"), [(1.0, None), (4.0, None), (4.0, ("a dog", "grey"))])
def test_prompts_give_the_images_of_diffusers(pair, scale, negative):
    _, folder, pipe = pair
    family = read(folder)
    found, settings = ours(family, negative=negative, guidance_scale=scale)
    expected = pipe(
        prompt=list(PROMPTS),
        negative_prompt=negative and list(negative),
        guidance_scale=scale,
        num_inference_steps=settings.num_inference_steps,  # at the levels of the folder's own scheduler
        latents=noise(family, len(PROMPTS)),
        output_type="pt",
    ).images
    assert found.shape == expected.shape == (2, 3, 16, 16)
    assert (found[0] - found[1]).abs().max() > 1e-2
    assert (found - (expected * 2 - 1)).abs().max() < 1e-3


def test_refiner_takes_over_at_its_level(tmp_path):
    base = folders.stable_diffusion_xl(tmp_path / "base")
    refiner = folders.refiner(tmp_path / "refiner", base)
    told = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "timestep_spacing": "trailing"}))
    family = read(tmp_path / "base", tmp_path / "refiner")
    start, steps = 0.6, 9  # whole times, so that both interpolate levels alike
    settings = family.Settings(solver="euler", num_inference_steps=steps, guidance_scale=4.0, refiner_start=start)
    request = Request(torch.arange(2), settings, Conditions(prompt=PROMPTS, negative_prompt=("", "")))
    found = family.sample(request)
    times = [111.0 * left for left in range(steps, 0, -1)]
    common = {"prompt": list(PROMPTS), "negative_prompt": ["", ""], "guidance_scale": 4.0}
    for pipe in (base, refiner):
        pipe.set_progress_bar_config(disable=True)
    half = base(**common, timesteps=times, denoising_end=start, latents=noise(family, 2), output_type="latent").images
    whole = refiner(**common, image=half, timesteps=times, denoising_start=start, output_type="pt").images
    assert (found - (whole * 2 - 1)).abs().max() < 1e-3
    plain = family.sample(replace(request, settings=settings.model_copy(update={"refiner_start": 1.0})))
    assert (found - plain).abs().max() > 1e-2


def test_a_folder_with_a_pickle_is_refused(pair, tmp_path):
    _, folder, _ = pair
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(SamplerError, match=r"diffusion_pytorch_model\.bin: may be a pickle"):
        read(tmp_path / "model")


CHANGES = {
    "other activation": ("unet/config.json", {"act_fn": "gelu"}, "act_fn: expected 'silu', found 'gelu'"),
    "classes": ("unet/config.json", {"num_class_embeds": 10}, "num_class_embeds: expected None, found 10"),
    "inpainting": ("unet/config.json", {"in_channels": 9}, "in_channels: expected out_channels, 4, found 9"),
    "other blocks": ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 2}, "down_block_types: expected"),
    "other width": ("unet/config.json", {"block_out_channels": [32, 96]}, "unet: not this network's weights"),
    "other norms": (
        "unet/config.json",
        {"norm_num_groups": 24},
        "norm_num_groups: 24 do not divide block_out_channels",
    ),
    "other betas": ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "beta_end: expected 0.012, found 0.02"),
    "other target": ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "prediction_type: exp"),
    "no quantisation": ("vae/config.json", {"use_quant_conv": False}, "use_quant_conv: expected True, found False"),
    "other pipeline": ("model_index.json", {"_class_name": "FluxPipeline"}, "a FluxPipeline; expected StableDiffusion"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_our_nets_do_not_compute_is_refused(change, tmp_path_factory, tmp_path, known):
    file, values, message = CHANGES[change]
    shutil.copytree(known, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(SamplerError, match=message):
        read(tmp_path / "model")


SCHEDULERS = {
    "by default": {},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "karras, leading": {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1},
}


@pytest.mark.parametrize("told", SCHEDULERS)
@pytest.mark.parametrize(
    "kind", ["DDIM", "EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "DPMSolverMultistep", "UniPCMultistep"]
)
def test_levels_are_those_of_the_folders_scheduler(kind, told, tmp_path):
    import diffusers

    changes = {name: value for name, value in SCHEDULERS[told].items() if kind != "DDIM" or "karras" not in name}
    theirs = getattr(diffusers, f"{kind}Scheduler")(**BETAS["scaled_linear"], **changes)
    theirs.save_pretrained(tmp_path)
    told_config = json.loads((tmp_path / "scheduler_config.json").read_text())
    if told == "by default":  # as of before such keys were written
        told_config = {name: told_config[name] for name in told_config if name not in ("timestep_spacing",)}
        (tmp_path / "scheduler_config.json").write_text(json.dumps(told_config))
    found = from_diffusers._schedule(from_diffusers._part(tmp_path, "scheduler_config.json"))["schedule"]
    schedule = build(ScheduleConfig(**found))
    steps = 7
    theirs.set_timesteps(steps)
    wanted = [float(time) for time in dict.fromkeys(theirs.timesteps.tolist())]  # Heun visits most twice
    ours = 999 * schedule.time(torch.tensor(spaced_sigmas(schedule, "schedule", steps)[:-1]).double())
    assert len(wanted) == steps
    assert ours.tolist() == pytest.approx(wanted, abs=1.0)


@pytest.mark.parametrize("name", ["use_beta_sigmas", "use_exponential_sigmas", "use_lu_lambdas", "use_flow_sigmas"])
def test_levels_that_ours_do_not_visit_are_refused(name, known, tmp_path):
    shutil.copytree(known / "scheduler", tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: True}))
    with pytest.raises(SamplerError, match=f"{name}: expected False, found True"):
        from_diffusers._schedule(from_diffusers._part(tmp_path / "scheduler", path.name))


def test_karras_levels_give_the_images_of_diffusers(known, tmp_path):
    import diffusers

    shutil.copytree(known, tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_karras_sigmas": True}))
    family = read(tmp_path / "model")
    found, settings = ours(family, guidance_scale=4.0)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt=list(PROMPTS),
        guidance_scale=4.0,
        num_inference_steps=settings.num_inference_steps,
        latents=noise(family, len(PROMPTS)),
        output_type="pt",
    ).images
    assert (found - (expected * 2 - 1)).abs().max() < 1e-3
    assert (found - ours(read(known), guidance_scale=4.0)[0]).abs().max() > 1e-2


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known") / "model"
    folders.stable_diffusion(folder)
    return folder


@pytest.mark.parametrize(
    "missing", ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
)
def test_missing_files_are_named(missing, known, tmp_path):
    shutil.copytree(known, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(SamplerError, match=f"{missing}: missing"):
        read(tmp_path / "model")
