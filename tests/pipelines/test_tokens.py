"""Samplers of tokens from images to serving: encoded, trained, measured, shown, served and edited."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from pathlib import Path

import mlflow
import numpy as np
import openai
import pandas
import pytest
import torch
import yaml
from PIL import Image

from components.artifacts import run_folder
from components.data.dataset import Dataset, read_manifest
from components.data.info import data_info
from components.data.media.image import MEDIUM
from components.sampling.requests import Conditions, Request
from infra.config import ServeConfig
from infra.tracking.registry import CHAMPION
from pipelines import encode, evaluate, prepare, promote, reference
from pipelines.support.params import load
from pipelines.support.report_pictures import champion_film, champion_walks
from tests.components.helpers import one_exact_thread
from tests.infra.local import LocalBackend, ask, client, free_port, serving
from tests.pipelines.in_process import encoded, train, train_stage

TRAINING = {"training": {"steps": 4, "batch_size": 8, "report_every": 2, "save_every": 4}}
SMALL = {"width": 16, "depth": 1, "heads": 2}
CANDIDATES = {"gpt": {"guidance_scale": 2.0, "top_p": 0.9}, "maskgit": {"num_inference_steps": 3}}
MODEL = "latent-foundry"
PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "path": "data/raw", "image_size": 16},
    "autoencoders": {
        "vae": {
            "family": "vae",
            "data": "data/images/train",
            "model": {"latent_channels": 2, "widths": [4, 4, 8], "codebook": {"name": "fsq", "levels": [3, 4]}},
            **TRAINING,
        }
    },
    "judges": {"judge": {"family": "judge", "data": "data/images/train", "model": {"width": 4}, **TRAINING}},
    "encode": {"tokens": {"tokens": {"shifts": 1, "least_usage": 0.1}}},
    "samplers": {
        name: {"family": name, "data": "data/tokens", "model": SMALL, "candidates": [candidate], **TRAINING}
        for name, candidate in CANDIDATES.items()
    },
    "inputs": {"tokens/autoencoder": "runs/vae", "evaluate/judge": "runs/judge"},
    "evaluate": {
        "num_samples": 12,
        "batch_size": 12,
        "neighbours": 3,
        "resamples": 20,
        "real_draws": 2,
        "likelihood_rows": 20,
    },
    "promote": {"refuse_collapsed": False},  # what four steps have trained draws next to nothing
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch, one_exact_thread():
        patch.chdir(root)
        patch.setattr(encode, "session", lambda *_: contextlib.nullcontext())
        patch.setattr(encode.encoding, "encode", encoded)
        Path("params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
        prepare.main([])
        images = root / "data/images/train"
        for name, group in (("vae", "autoencoders"), ("judge", "judges")):
            train(root, name, name, PARAMS[group][name]["model"], data_info(read_manifest(images)), images)
        encode.main([])
        reference.main([])
        for name in CANDIDATES:
            train_stage(load(), f"samplers.{name}")
            evaluate.main([f"samplers.{name}"])
        yield root


def test_the_data_set_says_what_its_tokens_are(project):
    manifest = read_manifest(project / "data/tokens")
    assert (manifest.medium, manifest.value_range) == ("tokens", (0, 65535))
    assert manifest.columns["tokens"].shape == (1, 4, 4) and manifest.columns["views"].shape == (8, 4, 4)
    assert manifest.statistics["vocabulary"] == (12.0,) and 0.1 <= manifest.statistics["usage"][0] <= 1
    codebook = run_folder.load(project / "runs/vae").family.nets["autoencoder"].codebook
    assert manifest.source["codebook"] == codebook.fingerprint()
    assert Dataset(project / "data/tokens").medium.name == "tokens"


@pytest.mark.parametrize("name", CANDIDATES)
def test_it_is_measured_as_images_and_in_bits_per_token(project, name):
    result = json.loads((project / f"metrics/{name}.json").read_text())
    assert result["frechet_distance"] > 0 and 0 < result["bits_per_token"] < 6 and "bits_per_dim" not in result
    with Image.open(project / f"samples/{name}/0-grid.png") as sheet:
        assert sheet.size[0] == sheet.size[1]


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_report_shows_how_it_comes_about_and_no_walks(project, name):
    champion = run_folder.load(project / f"runs/{name}").family
    assert champion_film(champion, CANDIDATES[name])["progress"][-1] == 1
    assert champion_walks(champion, CANDIDATES[name]) == []


@pytest.mark.parametrize("name", CANDIDATES)
def test_it_is_served_and_edited(project, name):
    config = ServeConfig(port=free_port())
    with serving(LocalBackend(project / f"runs/{name}", config), config) as address:
        models = json.loads(ask(address)[2])["data"]
        assert {(model["size"], model["medium"]) for model in models} == {("16x16", "image")}
        images = client(address).images
        asked = {"prompt": "seven", "extra_body": {**CANDIDATES[name], "temperature": 0.5, "seed": 3}}
        made, again = (images.generate(**asked).data[0].b64_json for _ in range(2))
        assert made == again and Image.open(io.BytesIO(base64.b64decode(made))).size == (16, 16)
        with pytest.raises(openai.BadRequestError, match="top_p"):
            images.generate(prompt="seven", extra_body={"top_p": 2.0})
        photograph = io.BytesIO()
        Image.new("L", (16, 16), 200).save(photograph, "PNG")
        edited = images.edit(image=("a.png", photograph.getvalue()), prompt="two").data[0]
        assert Image.open(io.BytesIO(base64.b64decode(edited.b64_json))).size == (16, 16)


def test_what_is_read_from_the_folder_draws_as_what_was_trained(project):
    sampler = run_folder.load(project / "runs/gpt").family
    assert sampler.medium.name == "image" and sampler.row_shape == (1, 16, 16)
    assert torch.isfinite(sampler.preview({})).all()


@pytest.mark.slow
def test_it_reigns_in_the_registry_and_draws_from_there(project, monkeypatch):
    """The registry's copy has the tokeniser in it and needs nothing else."""
    path = project / "metrics/maskgit.json"
    content = json.loads(path.read_text())
    content["details"][0]["candidates"][0]["figures"]["frechet_distance"] = 1e9  # so that gpt wins
    path.write_text(json.dumps(content))
    monkeypatch.setattr(promote, "ROOT", project)
    promote.main([])
    name = json.loads((project / "promoted.json").read_text())["sampler"]
    assert name == "gpt"
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@{CHAMPION}")
    sampler = run_folder.load(project / f"runs/{name}").family
    rows = pandas.DataFrame({"seed": [3, 4], "label": [2, 7]})
    for changes in ({}, {"temperature": 0.5}):
        settings = sampler.Settings(**{**CANDIDATES[name], **changes})
        made = sampler.sample(Request(torch.tensor([3, 4]), settings, Conditions(label=torch.tensor([2, 7]))))
        wanted = MEDIUM.to_stored(made).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(model.predict(rows, params=changes or None), wanted)
