"""Run folders that an earlier version wrote: the same model under today's names."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from components.artifacts import old_runs, run_folder
from components.families import vae
from components.sampling.requests import Request
from components.training import ema
from components.training.loop import State
from tests.components.helpers import LATENTS, assert_same, build, copied, tiny, tiny_data

PROVENANCE = run_folder.Provenance(data="d", code="c", job="j", seed=0, step=2)
CAPTIONED = LATENTS.model_copy(update={"caption_length": 12})
MODELS = {
    "class": ("latent_diffusion", LATENTS, {"guide": {"at": 0.5}, "weighting": {"name": "learned"}}),
    "text": ("latent_diffusion", CAPTIONED, {"conditioning": "text", "text": {"width": 8, "heads": 2}}),
    "imported": ("stable_diffusion", tiny_data("stable_diffusion"), {}),
}
BEFORE = {new: old for old, new in old_runs.PARTS.items()}


def old_keys(weights):
    return {
        f"{BEFORE[part]}{key.removeprefix(part)}": value
        for key, value in weights.items()
        for part in [next((part for part in BEFORE if key.startswith(part)), None)]
        if part is not None
    } | {key: value for key, value in weights.items() if key.startswith("uncertainty")}


def age(folder, name):
    """Rewrites a run folder as the earlier version wrote it."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    backbone = content["config"].pop("backbone")
    backbone.pop("name")
    backbone.pop("norm_groups")
    content["config"] |= {"unet": backbone} if name == "stable_diffusion" else backbone
    path.write_text(json.dumps(content))
    for net in ("denoiser", "guide", "refiner"):
        file = folder / f"{net}.safetensors"
        if file.is_file():
            weights = old_keys(safetensors.torch.load_file(file))
            file.unlink()
            file = folder / ("unet.safetensors" if net == "denoiser" else file.name)
            safetensors.torch.save_file(weights, file)


@pytest.mark.parametrize("which", MODELS)
def test_an_old_run_is_the_same_model(which, tmp_path):
    name, data, changes = MODELS[which]
    changes = {"backbone": {**tiny(name).config["backbone"], "norm_groups": 32}, **changes}
    family = build(name, 0, data, **changes)
    average = ema.copy_of({"denoiser": family.nets["denoiser"]})
    snapshots = [
        {"step": step, "sigma_rel": width, "nets": ema.copy_of({"denoiser": family.nets["denoiser"]})}
        for step in (1, 2)
        for width in ema.TRACES
    ]
    run_folder.write(tmp_path / "run", name, family, State(2, {}, {}, average, snapshots=snapshots), PROVENANCE)
    wanted = run_folder.load(tmp_path / "run").family
    age(tmp_path / "run", name)
    found = run_folder.load(tmp_path / "run").family
    assert found.config == wanted.config
    for net in wanted.kept:
        assert_same(copied(found.nets[net]), copied(wanted.nets[net]))


def ungrouped(content):
    """The content of a config.json without its numbers of groups, as it was written before there was a choice."""
    if isinstance(content, dict):
        return {key: ungrouped(value) for key, value in content.items() if key != "norm_groups"}
    return content


@pytest.mark.parametrize("name", ["latent_diffusion", "vae", "judge", "stable_diffusion"])
def test_an_old_run_keeps_its_groups(name, tmp_path):
    autoencoder = LATENTS.autoencoder.model_copy(update={"config": {**vae.TINY.config, "norm_groups": 32}})
    data = tiny_data(name)
    changes = {"norm_groups": 32}
    if data.autoencoder is not None:
        data = data.model_copy(update={"autoencoder": autoencoder})
        unets = {key: block for key, block in tiny(name).config.items() if key in ("backbone", "refiner")}
        changes = {key: {**block, "norm_groups": 32} for key, block in unets.items()}
    family = build(name, 0, data, **changes)
    groups = [module.num_groups for module in family.nets.modules() if isinstance(module, nn.GroupNorm)]
    average = {net: copied(family.nets[net]) for net in family.kept}
    run_folder.write(tmp_path / "run", name, family, State(2, {}, {}, average), PROVENANCE)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(ungrouped(json.loads(path.read_text()))))
    found = run_folder.load(tmp_path / "run").family
    assert [module.num_groups for module in found.nets.modules() if isinstance(module, nn.GroupNorm)] == groups
    assert groups != [module.num_groups for module in build(name).nets.modules() if isinstance(module, nn.GroupNorm)]
    if hasattr(found, "sample"):
        request = Request(torch.arange(2), found.Settings(**tiny(name).settings))
        family.nets.requires_grad_(False).eval()  # as a loaded run is: gradients choose other kernels
        assert_same(found.sample(request), family.sample(request))


def test_old_averages_are_read(tmp_path):
    family = build("latent_diffusion")
    weights = {"unet": old_keys(copied(family.nets["denoiser"]))}
    run_folder._write_averages(tmp_path / run_folder.AVERAGES, [{"step": 1, "sigma_rel": 0.05, "nets": weights}])
    (snapshot,) = run_folder.read_averages(tmp_path)
    assert_same(snapshot["nets"]["denoiser"], copied(family.nets["denoiser"]))


def test_an_old_encoder_of_bigbigan_is_read(tmp_path):
    encoder = build("bigbigan").nets["encoder"]
    weights = {key.replace("head.", "read."): value.contiguous() for key, value in copied(encoder).items()}
    safetensors.torch.save_file(weights, tmp_path / "encoder.safetensors")
    found = build("bigbigan", seed=1).nets["encoder"]
    run_folder.load_weights(found, tmp_path / "encoder.safetensors")
    assert_same(copied(found), copied(encoder))
