"""Edits of params.yaml alone, reproduced: models added, removed and renamed, several data sets of latents, inputs."""

from __future__ import annotations

import copy
import json

import pytest

from tests.clones import command, make_clone, tiny_params

QUICK = {"solver": "ddim", "num_inference_steps": 2}


def edited() -> dict:
    """Tiny parameters with `stylegan2` added, `wgan_gp` removed, `ldm` renamed, a second autoencoder with its own
    latents, diffusion on them and on pixels, and a model that another guides."""
    params = tiny_params()
    samplers = params["samplers"]
    samplers["big"] = {name: value for name, value in samplers["dcgan"].items() if name != "model"}
    samplers["big"]["family"] = "stylegan2"
    del samplers["wgan_gp"], params["inputs"]["wgan_gp/judge"]
    samplers["diffusion"] = samplers.pop("ldm")
    params["autoencoders"]["wide"] = copy.deepcopy(params["autoencoders"]["vae"])
    params["encode"]["wide_latents"] = {"batch_size": 500}
    params["inputs"] |= {"wide_latents/autoencoder": "runs/wide", "guided/guide": "runs/diffusion"}
    samplers["pixels"] = {**samplers["diffusion"], "data": "data/images/train", "candidates": [QUICK]}
    samplers["guided"] = {**samplers["diffusion"], "candidates": [{**QUICK, "guidance": "autoguidance"}]}
    samplers["wide_ldm"] = {**samplers["diffusion"], "data": "data/wide_latents", "candidates": [QUICK]}
    return params


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_edits_of_params_alone_are_reproduced(tmp_path):
    clone = make_clone(tmp_path / "clone", edited())
    (clone / "metrics").mkdir()
    (clone / "metrics/old.json").write_text("{}")  # of a sampler that was removed
    done = command(clone, "python", "-m", "pipelines.repro")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in edited()["samplers"]:
        assert (clone / f"metrics/{name}.json").is_file()
    assert (clone / "runs/guided/guide.safetensors").is_file()
    page = (clone / "report.html").read_text()
    assert "wide_ldm" in page and "wgan_gp" not in page
    assert "up to date" in command(clone, "dvc", "repro").stdout
    ran = command(clone, "dvc", "exp", "run", "-S", "samplers.pixels.training.steps=7", "sampler@pixels")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    config = json.loads((clone / "runs/pixels/config.json").read_text())
    assert config["provenance"]["step"] == 7
    assert command(clone, "dvc", "exp", "show", "--json").returncode == 0
    assert command(clone, "dvc", "metrics", "diff", "--json").returncode == 0
