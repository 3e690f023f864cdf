"""Run folders that an earlier version wrote: the same model under today's names."""

import json

import pytest
import safetensors.torch

from components.artifacts import old_runs, run_folder
from components.training import ema
from components.training.loop import State
from tests.components.helpers import LATENTS, assert_same, build, copied, tiny_data

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
